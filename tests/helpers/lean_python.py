"""A Python beside which nothing is installed but torch and what is named."""

import re
import venv
from collections.abc import Collection, Iterator
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path, PurePath


def python_with(modules: Collection[str], folder: Path) -> Path:
    """Make an environment of torch and the distributions that hold these modules; return its Python.

    What they require is there too, unless rlpheads itself asks for it: that must be named. rlpheads is not installed.
    """
    by_module = packages_distributions()
    named = {name for module in modules for name in by_module[module.partition(".")[0]]}
    ours = {*_requirements("rlpheads", of_any_extra=True)}
    kept = _with_requirements({"torch"}) | _with_requirements({*map(_canonical, named)}, ours)
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for target in {target for name in kept for target in _top_level(name)}:
        (packages / target.name).symlink_to(target)
    return folder / "bin" / "python"


def _with_requirements(names: set[str], unless: Collection[str] = ()) -> set[str]:
    """These distributions and all that they require, as far as it is installed."""
    kept, ahead = set[str](), names
    while ahead:
        kept |= ahead
        required = {name for known in ahead for name in _requirements(known)} - kept - set(unless)
        ahead = {name for name in required if _is_installed(name)}
    return kept


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _requirements(name: str, *, of_any_extra: bool = False) -> Iterator[str]:
    """Names of the distributions that one requires, with those of its extras or without."""
    for requirement in distribution(name).requires or []:
        if of_any_extra or "extra ==" not in requirement:
            yield _canonical(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _top_level(name: str) -> Iterator[Path]:
    """Files and folders of a distribution that lie in site-packages itself."""
    found = distribution(name)
    names = {PurePath(file).parts[0] for file in found.files or []} - {"..", "__pycache__"}
    yield from (Path(str(found.locate_file(name))) for name in names)

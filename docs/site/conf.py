"""The static site: every page of docs/ and the reference made of the docstrings; `make docs` builds it and checks its links."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
API = ROOT / "docs" / "api"
ROOMS = ("engine", "loaders", "kernels", "memorization")
LEFT_OUT = ("kernels/tools", "engine/train.py", "loaders/adapters/ffcv_")
"""Tools of developers; a program; what loads FFCV's compiled library when it is imported."""
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)\)")
sys.path.insert(0, str(ROOT))

import rlpheads  # noqa: E402 - the tree's own

project = "rlpheads"
author = "the authors of rlpheads"
release = rlpheads.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "benchmarks/README.md",
    "docs/*.md",
    "docs/notes/*.md",
    "docs/api/*.rst",
]
include_patterns += ["docs/site/index.md"]
exclude_patterns = [".*", "build", "runs", "tests", "benchmarks/inputs", "benchmarks/results", "wandb"]
root_doc = "docs/site/index"
html_theme = "furo"
html_title = f"rlpheads {release}"
html_show_sourcelink = False
html_extra_path = ["top"]  # index.html at the top leads to ours

myst_heading_anchors = 4  # so that a link to a heading that is not there is a warning
myst_enable_extensions = ["colon_fence"]
default_role = "code"
napoleon_use_ivar = True
autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
autodoc_mock_imports = ["ffcv", "nvidia.dali", "lightning", "transformers", "wandb", "numba"]
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
# Docstrings are prose for readers of the code, with `names`, ranges and formulas; reST's opinions of those are no errors. That
# a module cannot be imported, or a link leads nowhere, is one.
suppress_warnings = ["docutils", "ref.python", "myst.header", "config.cache", "toc.not_included", "toc.duplicate_entry"]


def modules() -> dict[str, list[str]]:
    """Return the public modules of the rooms by their folder, such as engine/model."""
    found: dict[str, list[str]] = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            if not name.startswith(LEFT_OUT):
                found.setdefault(str(path.parent.relative_to(ROOT)), []).append(
                    f"rlpheads.{name[:-3].replace('/', '.')}"
                )
    return found


def write_api() -> None:
    """Write the pages of the reference, from which autodoc makes the rest; only those that changed."""
    pages = {"doors": [_title("The doors of the package", "="), ".. currentmodule:: rlpheads", ""]}
    for name in sorted(set(rlpheads.__all__) - {"__version__"}):
        kind = "autoclass" if inspect.isclass(getattr(rlpheads, name)) else "autofunction"
        pages["doors"] += [f".. {kind}:: rlpheads.{name}", ""]
    for folder, names in modules().items():
        lines = [_title(f"rlpheads.{folder.replace('/', '.')}", "=")]
        for name in names:
            lines += [_title(name, "-"), f".. automodule:: {name}", ""]
        pages[folder.replace("/", "_")] = lines
    listed = "\n".join(f"   {page}" for page in pages)
    pages["index"] = [_title("Reference", "="), f".. toctree::\n   :maxdepth: 1\n\n{listed}", ""]
    API.mkdir(exist_ok=True)
    for page, lines in pages.items():
        path, text = API / f"{page}.rst", "\n".join(lines)
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)
    for path in API.glob("*.rst"):
        if path.stem not in pages:
            path.unlink()


def _title(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}\n"


def without_folders(app: object, docname: str, source: list[str]) -> None:  # noqa: ARG001 - Sphinx's signature
    """Show links to folders of the tree as their names: the site has pages and files alone."""
    page = ROOT / f"{docname}.md"
    if page.is_file():
        source[0] = LINK.sub(
            lambda link: f"{link[1]} (`{link[2].lstrip('./')}`)" if (page.parent / link[2]).is_dir() else link[0],
            source[0],
        )


def setup(app: Any) -> None:
    """Sphinx calls this."""
    app.connect("source-read", without_folders)


for each in ("engine.model.wide_resnet",):  # registers models, once and before autodoc looks twice
    importlib.import_module(f"rlpheads.{each}")
write_api()

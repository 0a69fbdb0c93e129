"""Measure the house: files a folder, floors, arrows, longest function and file, and where to look for each.

python scripts/house.py     # or: make house

tests/test_house.py holds these measures to its limits. Everything is read off the syntax trees; nothing is imported.
"""

from __future__ import annotations

import ast
import functools
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("engine", "loaders", "kernels", "memorization")
CODE = (".py", ".cpp", ".h")


@dataclass(frozen=True)
class Import:
    """One import of a module of the package, by the module's file.

    `for_types` marks one below `if TYPE_CHECKING:`, which the running program does not make.
    """

    target: str
    for_types: bool


@dataclass(frozen=True)
class SourceFile:
    """A Python file of a room; `name` is its path from the root, such as engine/config/schema.py."""

    name: str
    text: str
    tree: ast.Module
    imports: tuple[Import, ...]

    @property
    def node(self) -> str:
        """The place in the table of arrows: the folder, or for a room's own files the file without suffix."""
        return node_of(self.name)

    @property
    def num_lines(self) -> int:
        """Lines of the file."""
        return len(self.text.splitlines())


@dataclass(frozen=True)
class Function:
    """A function or method, where it stands, and how many lines it has from `def` to its end."""

    file: str
    name: str
    num_lines: int


def node_of(name: str) -> str:
    """Return a file's place in the table of arrows."""
    path = Path(name)
    return str(path.parent) if len(path.parts) > 2 else str(path.with_suffix(""))


@functools.cache
def source_files() -> tuple[SourceFile, ...]:
    """Read every Python file of the rooms, by name."""
    names = sorted(str(path.relative_to(ROOT)) for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    return tuple(_read(name, frozenset(names)) for name in names)


def _read(name: str, names: frozenset[str]) -> SourceFile:
    text = (ROOT / name).read_text()
    tree = ast.parse(text)
    for_types = {id(inner) for node in ast.walk(tree) if _is_for_types(node) for inner in ast.walk(node)}
    imports = {
        Import(target, id(node) in for_types) for node in ast.walk(tree) for target in _targets(node) if target in names
    }
    return SourceFile(name, text, tree, tuple(sorted(imports, key=lambda each: (each.target, each.for_types))))


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in {
        inner.id for inner in ast.walk(node.test) if isinstance(inner, ast.Name)
    }


def _targets(node: ast.AST) -> Iterator[str]:
    """Yield the files that an import statement may mean: `from rlpheads.a import b` names a.py, or a/b.py."""
    modules: list[str] = []
    if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
        modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    for module in modules:
        if module.startswith("rlpheads."):
            yield module.removeprefix("rlpheads.").replace(".", "/") + ".py"


def files_by_folder() -> dict[str, int]:
    """Count the source files of each folder, C++ included."""
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.*") if path.suffix in CODE]
    return dict(sorted(Counter(str(path.parent.relative_to(ROOT)) for path in files).items()))


def folder_arrows() -> dict[str, set[str]]:
    """Return which places import which others; imports in functions and for type checkers count too."""
    arrows: dict[str, set[str]] = {file.node: set() for file in source_files()}
    for file in source_files():
        arrows[file.node] |= {node_of(each.target) for each in file.imports} - {file.node}
    return arrows


def file_arrows() -> dict[str, set[str]]:
    """Return which files import which others while the program runs: in functions too, but not for type checkers."""
    return {file.name: {each.target for each in file.imports if not each.for_types} for file in source_files()}


def circle(arrows: Mapping[str, set[str]]) -> list[str]:
    """Return a circle of arrows, from a place back to itself; empty where there is none."""
    done: set[str] = set()
    path: list[str] = []

    def visit(place: str) -> list[str]:
        if place in path:
            return [*path[path.index(place) :], place]
        if place in done:
            return []
        path.append(place)
        for target in sorted(arrows[place]):
            if found := visit(target):
                return found
        done.add(path.pop())
        return []

    return next((found for place in sorted(arrows) if (found := visit(place))), [])


def floors(room: str) -> dict[str, int]:
    """Return the floor of each place of a room: one above the highest place of the room that it imports; 1 at the ground.

    Raises:
        ValueError: the places import each other in a circle.
    """
    arrows = {
        place: {target for target in targets if target.split("/")[0] == room}
        for place, targets in folder_arrows().items()
        if place.split("/")[0] == room
    }
    if found := circle(arrows):
        raise ValueError(f"no floors in a circle: {' -> '.join(found)}")

    @functools.cache
    def floor(place: str) -> int:
        return 1 + max((floor(target) for target in arrows[place]), default=0)

    return {place: floor(place) for place in sorted(arrows, key=lambda place: (floor(place), place))}


def functions() -> list[Function]:
    """Return every function and method of the package, the longest first."""
    found = [
        Function(file.name, node.name, (node.end_lineno or node.lineno) - node.lineno + 1)
        for file in source_files()
        for node in ast.walk(file.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return sorted(found, key=lambda function: -function.num_lines)


def num_imported_modules(file: SourceFile) -> int:
    """Count the modules of the package that a file imports from."""
    return len({each.target for each in file.imports})


def public_names() -> dict[str, list[str]]:
    """Return the files that define each class and each public function of module level, by its name."""
    files: defaultdict[str, list[str]] = defaultdict(list)
    for file in source_files():
        for node in file.tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
                files[node.name].append(file.name)
    return dict(files)


def main() -> None:
    """Print all measures."""
    console = Console(highlight=False)
    counts = files_by_folder()
    largest = max(counts, key=lambda folder: counts[folder])
    arrows = folder_arrows()
    longest = functions()[0]
    outside = next(each for each in functions() if not each.file.startswith("kernels/"))
    file = max(source_files(), key=lambda each: each.num_lines)
    console.print(f"files: {len(source_files())} of Python, {sum(counts.values())} with C++, in {len(counts)} folders")
    console.print(
        f"files a folder: median {statistics.median(counts.values()):g}, largest {counts[largest]} ({largest})"
    )
    console.print(f"arrows between folders: {sum(map(len, arrows.values()))}, circle: {_chain(circle(arrows))}")
    console.print(
        f"arrows between files: {sum(map(len, file_arrows().values()))}, circle: {_chain(circle(file_arrows()))}"
    )
    console.print(f"longest function: {longest.num_lines} lines ({longest.file}, {longest.name})")
    console.print(f"longest function outside kernels: {outside.num_lines} lines ({outside.file}, {outside.name})")
    console.print(f"longest file: {file.num_lines} lines ({file.name})")
    console.print(f"functions over 60 lines: {sum(each.num_lines > 60 for each in functions())} of {len(functions())}")
    twice = {name: files for name, files in public_names().items() if len(files) > 1}
    console.print(f"public names defined twice: {', '.join(sorted(twice)) or 'none'}")
    for room in ROOMS:
        console.print(_floor_table(room, counts, arrows))
    console.print(_import_table())


def _chain(places: list[str]) -> str:
    return " -> ".join(places) or "none"


def _floor_table(room: str, counts: Mapping[str, int], arrows: Mapping[str, set[str]]) -> Table:
    try:
        levels = floors(room)
    except ValueError as error:
        return Table(title=f"{room}: {error}")
    table = Table(
        "floor", "place", "files", "imports", title=f"{room}: {max(levels.values())} floors", title_justify="left"
    )
    for place, floor in reversed(levels.items()):
        targets = [target.removeprefix(f"{room}/") for target in sorted(arrows[place])]
        table.add_row(str(floor), place, str(counts.get(place, 1)), " ".join(targets))
    return table


def _import_table() -> Table:
    table = Table("file", "modules", title="modules that a file of engine/training imports from", title_justify="left")
    files = [file for file in source_files() if file.node == "engine/training"]
    for file in sorted(files, key=num_imported_modules, reverse=True):
        table.add_row(file.name, str(num_imported_modules(file)))
    return table


if __name__ == "__main__":
    main()

"""Finds circles of imports between modules, those by imports inside functions too.

`make check` runs it. import-linter has no such contract. Imports for type checkers only don't count.
"""

import ast
import graphlib
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "src"


def main() -> None:
    """Print each circle, and end with an error if there is one."""
    modules = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}
    graph = {name: set(imported(path, modules)) - {name} for name, path in modules.items()}
    circles = list(circles_in(graph))
    if circles:
        sys.exit("\n".join(f"circle of imports: {' -> '.join(reversed(circle))}" for circle in circles))
    print(f"{len(modules)} modules import each other in no circle")


def name_of(path: Path) -> str:
    """Return the module's name."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path, modules: dict[str, Path]) -> Iterator[str]:
    """Yield the modules that a module imports anywhere. A name that is imported from a package may be a module."""
    for node in run_time_nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names if each.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            names = [f"{node.module}.{each.name}" for each in node.names]
            yield from (each for each in names if each in modules)
            if not all(each in modules for each in names):
                yield node.module


def run_time_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes but those below `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from run_time_nodes(child)


def circles_in(graph: dict[str, set[str]]) -> Iterator[list[str]]:
    """Yield circles until none is left, without one import of each."""
    while True:
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            circle = error.args[1]
            yield circle
            # The sorter names the imported module before the one that imports it.
            graph[circle[1]].discard(circle[0])
        else:
            return


if __name__ == "__main__":
    main()

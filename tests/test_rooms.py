"""The package is a house of rooms: imports point one way, and few modules lie outside of a room."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jaxbooth"
# From the bottom to the top: a room imports what stands below it. Rooms of one line do not import each other.
FLOORS = (
    ("errors", "assets"),
    ("console",),
    ("storage",),
    ("sharding", "backend"),
    ("params",),
    ("prng", "distributed"),
    ("diffusion",),
    ("models",),
    ("weights",),
    ("config",),
    ("base",),
    ("data",),
    ("training", "metrics", "export", "lora_tools"),
    ("plan",),
    ("runs",),
    ("many",),
    ("pipeline", "report"),
    ("evaluation",),
    ("ui",),
    ("cli",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MODULES = sorted(PACKAGE.rglob("*.py"))
ROOT_MODULES = 9
ROOMS = sorted(path.parent for path in PACKAGE.rglob("__init__.py") if path.parent.name not in ("jaxbooth", "assets"))


def room_of(module: str) -> str:
    """Returns the room of `jaxbooth.room.file`; the package's own name for its two entry modules."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] != "__main__" else "jaxbooth"


def name_of(path: Path) -> str:
    """Returns a file's module name."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> Iterator[str]:
    """Yields the modules of the package that a file imports anywhere: in functions and for type checkers, too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "jaxbooth")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jaxbooth":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = any(name_of(other) == inner for other in MODULES)
                yield inner if is_module else str(node.module)
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path} imports relatively"


@pytest.mark.parametrize("path", [path for path in MODULES if room_of(name_of(path)) != "jaxbooth"], ids=name_of)
def test_a_file_imports_rooms_below_its_own(path):
    room = room_of(name_of(path))
    upward = [other for other in imported(path) if room_of(other) != room and FLOOR[room_of(other)] >= FLOOR[room]]
    assert upward == []


def test_no_files_import_each_other_in_a_circle():
    graph = {name_of(path): set(imported(path)) for path in MODULES}
    while graph:
        leaves = [name for name, others in graph.items() if not others & (graph.keys() - {name})]
        assert leaves, f"in a circle: {', '.join(sorted(graph))}"
        for name in leaves:
            del graph[name]


def test_few_modules_lie_outside_of_a_room():
    assert len(list(PACKAGE.glob("*.py"))) <= ROOT_MODULES


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.relative_to(PACKAGE).as_posix())
def test_a_room_says_what_lives_there_and_holds_no_code(room):
    [docstring] = ast.parse((room / "__init__.py").read_text(encoding="utf-8")).body
    assert isinstance(docstring, ast.Expr)
    assert isinstance(docstring.value, ast.Constant)
    assert len(str(docstring.value.value)) > 60


def test_no_file_is_longer_than_300_lines():
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {name: length for name, length in lengths.items() if length > 300} == {}

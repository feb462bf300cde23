"""The house: who may import whom. Arrows point down only."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "torchsaver"

# Each room or module, from the top; it may import what stands on a lower floor, and its own room.
FLOORS = [
    {"__init__", "__main__"},
    {"cli"},
    {"conversion", "loop", "manager", "pruning", "tf_optimizers", "warm_starting"},
    {"saver", "tf_saving", "inspection", "transfer"},
    {"saving"},
    {"restoring", "rotation", "recovery", "arguments"},
    {"reader"},
    {"leftovers", "open_checkpoint", "torch_checkpoint"},
    {"stored_tensor", "assembled_tensor", "retention", "variables"},
    {"storage"},
    {"formats"},
    {"errors", "version"},
]
# Beyond the floors: what a room must not do.
FORBIDDEN = {
    "variables": {"torchsaver.storage", "torchsaver.reader", "torchsaver.stored_tensor", "os", "io", "pathlib"},
    "cli": {"torchsaver.saver", "torch", "numpy"},  # and what that brings in: test_import.py
    "open_checkpoint": {"torchsaver.stored_tensor", "torchsaver.variables", "torch", "numpy"},
    "retention": {"torchsaver.storage", "torchsaver.variables", "os", "time", "torch"},
    "formats": {"torchsaver.variables", "torchsaver.storage"},
    "storage": {"torchsaver.variables"},
}


def _modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """Return the full names a module imports; of `from torchsaver.storage import disk`, torchsaver.storage.disk."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _floor(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def test_every_module_has_a_floor() -> None:
    assert {_room(path) for path in _modules()} == set().union(*FLOORS)


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_from_floors_below_or_its_own_room(path: Path) -> None:
    room = _room(path)
    targets = {name.split(".")[1] for name in _imports(path) if name.startswith("torchsaver.")}
    upward = {target for target in targets if target != room and _floor(target) <= _floor(room)}
    assert upward == set()


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_does_not_do_what_its_room_must_not(path: Path) -> None:
    forbidden = FORBIDDEN.get(_room(path), set())
    found = {name for name in _imports(path) for ban in forbidden if name == ban or name.startswith(ban + ".")}
    assert found == set()


def test_only_disk_changes_the_disk() -> None:
    changing = {
        "replace",
        "rename",
        "unlink",
        "remove",
        "mkdir",
        "makedirs",
        "rmdir",
        "fsync",
        "write",
        "pwrite",
        "pwritev",
        "truncate",
    }
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in _modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if node.value.id == "os" and node.attr in changing
    }
    assert found == {"storage/disk.py", "storage/writeback.py"}


def test_nothing_pickles() -> None:
    imported = set().union(*(_imports(path) for path in _modules()))
    assert not {
        name for name in imported if name.split(".")[0] in {"pickle", "shelve", "marshal", "dill", "cloudpickle"}
    }
    loading = {path.name: text for path in _modules() if "torch.load(" in (text := path.read_text(encoding="utf-8"))}
    assert loading.keys() == {"torch_file.py"}
    assert loading["torch_file.py"].count("torch.load(") == loading["torch_file.py"].count("weights_only=True") == 1


def test_no_file_has_grown_beyond_a_room() -> None:
    assert {path.name: n for path in _modules() if (n := path.read_text(encoding="utf-8").count("\n")) > 320} == {}

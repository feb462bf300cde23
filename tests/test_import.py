"""What importing the package and starting the command line bring in: no torch where none is needed.

Each test runs in a process of its own, because this one has imported everything already.
"""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import torchsaver as ts

HEAVY = {"torch", "numpy", "safetensors"}
# Of the standard library; torch has some of them, and what torch has costs nothing more.
HEAVY_STANDARD = {"asyncio", "concurrent", "ctypes", "http", "multiprocessing", "pydoc", "sqlite3", "unittest", "xml"}


def _run(code: str, *arguments: str) -> list[str]:
    """Run `code` in a new process, and return the words it prints last on its standard error."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr.split()


def _loaded(code: str, *arguments: str, after: str = "") -> set[str]:
    """Return the full names of the modules that `code` brings in, beyond those that `after` does."""
    before = "import sys; before = set(sys.modules)"
    told = "print(*sorted(set(sys.modules) - before), file=sys.stderr)"
    return set(_run("\n".join((after, before, code, told)), *arguments))


def _roots(modules: set[str]) -> set[str]:
    return {name.split(".")[0] for name in modules}


def test_import_brings_in_no_torch_and_no_module_of_the_package_but_its_version() -> None:
    loaded = _loaded("import torchsaver")
    assert not _roots(loaded) & HEAVY
    assert {name for name in loaded if name.startswith("torchsaver.")} == {"torchsaver.version"}


def test_import_after_torch_brings_in_all_that_a_save_or_a_restore_needs(tmp_path: Path) -> None:
    code = "import torchsaver as ts; assert 'Saver' in vars(ts)"
    work = """
prefix = ts.Saver({"x": torch.ones(3)}).save(sys.argv[1] + "/m", 1)
ts.Saver({"x": torch.ones(3)}).resume(sys.argv[1])
ts.load_checkpoint(prefix).get_tensor("x")
"""
    loaded = _loaded(work, str(tmp_path), after=f"import torch\n{code}")
    assert not {name for name in loaded if name.startswith("torchsaver")}


def test_saver_brings_in_only_what_a_saver_needs_beyond_torch() -> None:
    loaded = _loaded("import torchsaver; torchsaver.Saver", after="import torch")
    roots = _roots(loaded)
    assert {root for root in roots if root not in sys.stdlib_module_names} == {"torchsaver", "crc32c"}
    assert not roots & HEAVY_STANDARD
    assert "torchsaver.saver" in loaded
    assert not {name for name in loaded if name.startswith(("torchsaver.inspection", "torchsaver.cli"))}


@pytest.mark.parametrize(
    "name", ["CorruptCheckpointError", "get_checkpoint_state", "verify_checkpoint", "VerifyReport"]
)
def test_name_that_needs_no_torch_brings_in_none(name: str) -> None:
    assert not _roots(_loaded(f"import torchsaver; torchsaver.{name}")) & HEAVY


@pytest.fixture
def run(tmp_path: Path) -> Path:
    saver = ts.Saver({"w": torch.ones(4), "z": torch.ones(2, dtype=torch.complex128)}, max_shard_bytes=32)
    saver.save(tmp_path / "sharded", 1)
    ts.Saver({"w": torch.ones(4), "n": torch.tensor(3)}).save(tmp_path / "m", 5, metadata={"loss": 0.5})
    save_file({"t": torch.ones(1, dtype=torch.bfloat16)}, tmp_path / "their.safetensors")
    return tmp_path


COMMANDS = [
    *(["inspect", path] for path in ("", "m-5", "m-5.safetensors", "sharded-1", "their", "their.safetensors")),
    *(["inspect", "m-5", "--json"], ["inspect", "m-5", "--key", "w"]),
    *(["verify", path] for path in ("", "m-5", "sharded-1", "their")),
    *(["verify", "", "--json"], ["ls", ""], ["ls", "", "--headers"], ["ls", "", "--json"]),
]
MAIN = "import sys\nfrom torchsaver.cli import main\nassert main(sys.argv[1:]) == 0"


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_command_runs_without_torch(arguments: list[str], run: Path) -> None:
    command, path, *options = arguments
    assert not _roots(_loaded(MAIN, command, str(run / path), *options)) & HEAVY


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_option_runs_without_torch(option: str) -> None:
    code = "from torchsaver.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code"
    assert not _roots(_loaded(code, option)) & HEAVY


def test_torch_is_seen_where_it_is_needed() -> None:
    assert {"torch", "numpy"} <= _roots(_loaded("import torchsaver; torchsaver.load_checkpoint"))


def test_inspect_values_brings_in_torch(run: Path) -> None:
    assert "torch" in _roots(_loaded(MAIN, "inspect", str(run / "m-5"), "--values"))


def test_python_dash_m_runs_without_torch(run: Path) -> None:
    code = """
import runpy, sys
sys.argv = ["torchsaver", *sys.argv[1:]]
try:
    runpy.run_module("torchsaver", run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert end.code == 0
"""
    assert not _roots(_loaded(code, "inspect", str(run / "m-5"))) & HEAVY


def test_name_is_asked_for_once_and_then_kept() -> None:
    _run("import torchsaver as ts; assert 'Damage' not in vars(ts); ts.Damage; assert vars(ts)['Damage'] is ts.Damage")


def test_star_import_brings_every_public_name() -> None:
    _run("import torchsaver\nfrom torchsaver import *\nassert not {*torchsaver.__all__} - globals().keys()")


@pytest.mark.parametrize("name", ["saver", "storage.paths", "inspection.reports"])
def test_submodule_can_be_imported_first(name: str) -> None:
    _run(f"import torchsaver.{name}; torchsaver.{name}; torchsaver.Saver")


def test_submodule_can_be_imported_from_the_package() -> None:
    _run("from torchsaver import rotation, Saver; assert rotation.__name__ == 'torchsaver.rotation'")


def test_error_is_pickled_and_read_back_by_its_name() -> None:
    code = """
import pickle, torchsaver as ts
error = pickle.loads(pickle.dumps(ts.CorruptCheckpointError("f", 3, "why")))
assert type(error) is ts.CorruptCheckpointError and error.offset == 3
assert pickle.loads(pickle.dumps(ts.Damage)) is ts.Damage
"""
    _run(code)


def test_name_that_is_not_there_is_an_attribute_error_as_usual() -> None:
    with pytest.raises(AttributeError, match=r"^module 'torchsaver' has no attribute 'Sever'$") as caught:
        ts.Sever  # noqa: B018
    assert (caught.value.name, caught.value.obj) == ("Sever", ts)
    assert not hasattr(ts, "torch")
    with pytest.raises(ImportError, match="cannot import name 'Sever'"):
        from torchsaver import Sever  # noqa: F401


def test_dir_is_the_public_names_whether_asked_for_or_not() -> None:
    assert dir(ts) == ts.__all__
    _run("import torchsaver as ts; assert dir(ts) == ts.__all__; assert hasattr(ts, 'Damage')")


def test_every_name_stands_in_the_module_that_defines_it_for_type_checkers_too() -> None:
    imports = [node for node in ast.walk(ast.parse(inspect.getsource(ts))) if isinstance(node, ast.ImportFrom)]
    told = {alias.name: node.module for node in imports for alias in node.names}
    assert told.pop("__version__") == "torchsaver.version"
    assert told.pop("transfer") == "torchsaver", "a module of its own"
    own = {name: getattr(ts, name) for name in ts.__all__ if name not in ("__version__", "transfer")}
    assert told == {name: value.__module__ for name, value in own.items()}

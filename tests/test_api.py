"""The public surface: what is exported, and documented; what importing it costs is in test_import.py."""

import doctest
import inspect
import sys
from pathlib import Path

import pytest

import torchsaver as ts

PUBLIC = [getattr(ts, name) for name in ts.__all__ if name not in ("__version__", "transfer")]


def test_all_is_sorted_and_is_what_the_package_has() -> None:
    assert ts.__all__ == sorted(ts.__all__)
    imported = {name for name, value in vars(ts).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert imported == set(ts.__all__) - {"__version__", "transfer"}
    assert inspect.ismodule(ts.transfer)


@pytest.mark.parametrize("thing", PUBLIC, ids=lambda thing: thing.__name__)
def test_public_thing_is_documented_with_all_its_public_methods(thing: type) -> None:
    assert inspect.getdoc(thing)
    if inspect.isclass(thing) and not issubclass(thing, Exception):
        own = {name: member for name, member in vars(thing).items() if not name.startswith("_")}
        assert [name for name, member in own.items() if callable(member) and not inspect.getdoc(member)] == []


@pytest.mark.parametrize(
    "call",
    [
        ts.Saver,
        ts.Saver.restore,
        ts.Saver.resume,
        ts.newest_valid_checkpoint,
        ts.Variable,
        ts.get_checkpoint_state,
        ts.latest_checkpoint,
        ts.print_tensors_in_checkpoint_file,
    ],
    ids=lambda call: call.__qualname__,
)
def test_arguments_after_the_first_are_keyword_only(call: type) -> None:
    first, *rest = [p for name, p in inspect.signature(call).parameters.items() if name != "self"]
    assert first.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert {parameter.kind for parameter in rest} == {inspect.Parameter.KEYWORD_ONLY}


def test_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version

    assert ts.__version__ == version("torchsaver")


def test_changelog_starts_with_what_is_unreleased() -> None:
    changelog = (Path(__file__).parent.parent / "CHANGELOG.md").read_text(encoding="utf-8")
    assert changelog.index("## [Unreleased]") < changelog.index("### Added")


def test_docstring_examples_run() -> None:
    modules = [module for name, module in sys.modules.items() if name.startswith("torchsaver.")]
    assert modules
    assert all(doctest.testmod(module).failed == 0 for module in modules)

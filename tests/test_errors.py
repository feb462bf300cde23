"""Every error carries its fields, says what to do, and survives pickling."""

from __future__ import annotations

import copy
import pickle

import pytest

import torchsaver as ts
from torchsaver.errors import nearest_keys

MISMATCH = ts.MismatchError(
    "run/m-1",
    missing=["fc.weigth"],
    shapes=[("kernel", [3, 2], [2, 3]), ("bias", [4], [5])],
    dtypes=[("step", "float32", "int64")],
    targets=[("view", "is expanded")],
    nearest={"fc.weigth": ("fc.weight",)},
)
ERRORS = [
    ts.CheckpointNotFoundError("run/m-1"),
    ts.CheckpointNotFoundError("run/m-1", "the directory is empty"),
    ts.CheckpointKeyError("run/m-1", "fc.weigth", ["fc.weight"]),
    ts.CorruptCheckpointError("run/m-1.safetensors", 42, "the file ends 3 bytes early"),
    ts.UnsupportedCheckpointError("run/m-1.safetensors", "format version 9"),
    MISMATCH,
    ts.NoValidCheckpointError("run", [("run/m-2", "it is gone"), ("run/m-1", "checksum")]),
    ts.VarListError(["'a' is None", "a key is empty"]),
    ts.VarListTypeError(["key 3 is a int"]),
    ts.ConversionError(["'a' comes to the key ''"]),
]
BASES: dict[type, tuple[type, ...]] = {
    ts.TorchSaverError: (Exception,),
    ts.CheckpointNotFoundError: (ts.TorchSaverError, FileNotFoundError, ValueError),
    ts.CheckpointKeyError: (ts.TorchSaverError, KeyError),
    ts.CorruptCheckpointError: (ts.TorchSaverError, ValueError),
    ts.UnsupportedCheckpointError: (ts.TorchSaverError, NotImplementedError),
    ts.MismatchError: (ts.TorchSaverError, RuntimeError),
    ts.NoValidCheckpointError: (ts.TorchSaverError, ValueError),
    ts.VarListError: (ts.TorchSaverError, ValueError),
    ts.VarListTypeError: (ts.VarListError, TypeError),
    ts.ConversionError: (ts.VarListError,),
}


@pytest.mark.parametrize("kind", BASES, ids=lambda kind: kind.__name__)
def test_error_class_has_the_bases_the_docstring_draws(kind: type) -> None:
    assert kind.__bases__ == BASES[kind]


def test_error_classes_tested_are_all_there_are() -> None:
    public = [getattr(ts, name) for name in ts.__all__ if name.endswith("Error")]
    assert set(public) == set(BASES)
    assert {type(error) for error in ERRORS} == set(BASES) - {ts.TorchSaverError}


def _require_same(found: ts.TorchSaverError, wanted: ts.TorchSaverError) -> None:
    assert type(found) is type(wanted)
    assert vars(found) == vars(wanted)
    assert found.args == wanted.args
    assert str(found) == str(wanted)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_error_pickled_comes_back_with_fields_and_message(error: ts.TorchSaverError, protocol: int) -> None:
    _require_same(pickle.loads(pickle.dumps(error, protocol)), error)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_error_copied_comes_back_with_fields_and_message(error: ts.TorchSaverError) -> None:
    _require_same(copy.copy(error), error)
    _require_same(copy.deepcopy(error), error)
    _require_same(pickle.loads(pickle.dumps(copy.copy(error))), error)


@pytest.mark.skipif(not hasattr(BaseException, "add_note"), reason="Python 3.10 has no notes")
def test_error_with_a_note_and_a_cause_still_pickles() -> None:
    error = ts.CheckpointKeyError("run/m-1", "w")
    error.add_note("while restoring")  # type: ignore[attr-defined]
    error.__cause__ = OSError(5, "Input/output error")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (ERRORS[0], ["'run/m-1'", "PREFIX.safetensors", "latest_checkpoint()"]),
        (ERRORS[1], ["'run/m-1'", "the directory is empty", "pass what save()"]),
        (ERRORS[2], ["'run/m-1'", "'fc.weigth'", "nearest: 'fc.weight'"]),
        (ERRORS[3], ["'run/m-1.safetensors'", "byte 42", "3 bytes early", "use another checkpoint"]),
        (ERRORS[4], ["'run/m-1.safetensors'", "format version 9"]),
        (MISMATCH, ["'run/m-1'", "nothing was restored", "strict=False"]),
        (MISMATCH, ["fc.weigth: not in the checkpoint; nearest: 'fc.weight'"]),
        (MISMATCH, ["kernel: shape [3, 2] in checkpoint, [2, 3] in var_list; pass reshape=True"]),
        (MISMATCH, ["step: dtype float32 in checkpoint, int64 in var_list", "convert one"]),
        (MISMATCH, ["view: is expanded"]),
        (ERRORS[6], ["'run'", "none of them can be restored", "run/m-2: it is gone", "start from nothing in another"]),
        (ERRORS[7], ["var_list has 2 problems", "'a' is None", "a key is empty"]),
        (ERRORS[8], ["var_list: key 3 is a int"]),
    ],
)
def test_message_names_file_found_wanted_and_remedy(error: ts.TorchSaverError, parts: list[str]) -> None:
    assert [part for part in parts if part not in str(error)] == []


def test_mismatch_message_offers_reshape_only_where_the_counts_agree() -> None:
    (line,) = [line for line in str(MISMATCH).splitlines() if "bias" in line]
    assert "reshape" not in line


def test_mismatch_message_without_missing_keys_does_not_offer_strict() -> None:
    assert "strict" not in str(ts.MismatchError("m", targets=[("a", "is expanded")]))


@pytest.mark.parametrize(
    ("kind", "item"),
    [("missing", "k"), ("shapes", ("k", [1], [2])), ("dtypes", ("k", "int8", "int16")), ("targets", ("k", "is meta"))],
)
@pytest.mark.parametrize(("count", "rest"), [(10, 0), (11, 1), (1000, 990)])
def test_mismatch_message_over_ten_lines_is_cut_with_a_count(kind: str, item: object, count: int, rest: int) -> None:
    error = ts.MismatchError("m", **{kind: [item] * count})  # type: ignore[arg-type]
    lines = str(error).splitlines()
    assert len(lines) == 1 + 10 + bool(rest)
    assert (f"... and {rest} more" in lines[-1]) == bool(rest)
    assert len(getattr(error, kind)) == count


def test_nearest_keys_misspelled_gives_the_best_three_first() -> None:
    keys = ["fc.weight", "fc.weights", "fc.weighty", "fc.wei", "bias"]
    assert nearest_keys("fc.weigth", keys)[0] == "fc.weight"
    assert len(nearest_keys("fc.weigth", keys)) == 3
    assert nearest_keys("zzzz", keys) == ()


def test_no_valid_checkpoint_names_ten_of_many_and_holds_all() -> None:
    error = ts.NoValidCheckpointError("run", [(f"run/m-{step}", "it is gone") for step in range(12)])
    assert (len(error.skipped), len(str(error).splitlines())) == (12, 12)
    assert error.skipped[0] == ts.SkippedCheckpoint("run/m-0", "it is gone")
    assert "... and 2 more" in str(error)

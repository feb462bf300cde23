"""Variables are started from another model's, embeddings by the lines of their vocabularies: all of them or none.

What TensorFlow 2.21 does was seen by running tf.compat.v1.train.warm_start; "TF:" says it where it is not the same.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from variables.tf_reference import DTYPES, any_bits, content

import torchsaver as ts
from torchsaver.transfer import Concat, dense
from torchsaver.warm_starting import VocabInfo, warm_start

OLD, NEW = ["a", "b", "c", "d"], ["c", "x", "a", "y"]
EMB = torch.arange(8.0).reshape(4, 2) + 10
KERN = torch.arange(12.0).reshape(3, 4) + 100


@pytest.fixture(autouse=True)
def _own_collection() -> Iterator[None]:
    with ts.Collection():
        yield


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    values = {"emb": EMB, "kern": KERN, "bias": torch.arange(4.0), "stat": torch.ones(2)}
    saved = ts.Saver(values).save(tmp_path / "old" / "m")
    assert saved is not None
    return saved


def vocabulary(tmp_path: Path, name: str, lines: list[str] | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(lines if isinstance(lines, bytes) else "".join(f"{line}\n" for line in lines).encode())
    return path


def info(tmp_path: Path, new: Any = None, old: Any = None, oov: int = 0, **args: Any) -> VocabInfo:
    """Return the VocabInfo of all lines of new files."""
    lines = NEW if new is None else new
    args.setdefault("new_vocab_size", len(lines))
    return VocabInfo(
        vocabulary(tmp_path, "new", lines),
        num_oov_buckets=oov,
        old_vocab=vocabulary(tmp_path, "old_vocab", OLD if old is None else old),
        **args,
    )


def start(prefix: str, target: Any, vocab_info: VocabInfo, name: str = "emb") -> torch.Tensor:
    """Warm-start one variable, and return it."""
    warm_start(prefix, [name], {name: vocab_info}, var_list={name: target})
    assert isinstance(target, torch.Tensor)
    return target


def minus_one(*shape: int, name: str = "emb", trainable: bool = True) -> torch.Tensor:
    """Return a variable of the current collection."""
    return ts.Variable(torch.full(shape, -1.0), name=name, trainable=trainable)


# ---- which variables


def test_default_is_every_variable_that_requires_gradients(prefix: str) -> None:
    emb, stat = minus_one(4, 2), minus_one(2, name="stat", trainable=False)
    report = warm_start(prefix)
    assert torch.equal(emb, EMB)
    assert stat.eq(-1).all()
    assert report.restored == ("emb",)
    assert report.unused == ("bias", "kern", "stat")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("em", {"emb"}),
        ("e|s", {"emb"}),
        ("mb", set()),  # re.match, and a pattern that matches nothing is no error, as in TF
        ("", set()),
        ([".*"], {"emb", "stat"}),
        (["st"], {"stat"}),
        (["e", "em", "nothing"], {"emb"}),  # TF: two patterns for one variable are a ValueError
        ([], set()),
        (None, set()),
    ],
)
def test_patterns_choose_by_the_beginning_of_names(given: Any, expected: set[str], prefix: str) -> None:
    kept = [minus_one(4, 2), minus_one(2, name="stat", trainable=False)]
    assert set(warm_start(prefix, given).restored) == expected
    assert {name for name, one in zip(("emb", "stat"), kept, strict=True) if not one.eq(-1).any()} == expected


def test_list_of_tensors_chooses_these_whether_they_require_gradients_or_not(prefix: str) -> None:
    emb, stat = minus_one(4, 2), minus_one(2, name="stat", trainable=False)
    assert warm_start(prefix, [stat, stat]).restored == ("stat",)  # TF: the same one twice is a ValueError
    assert emb.eq(-1).all()
    with pytest.raises(ValueError, match=r"tensors of shapes \[\[7\]\] that are not among the variables"):
        warm_start(prefix, [stat, torch.zeros(7)])


def test_none_chooses_what_requires_gradients_and_has_a_vocabulary(prefix: str, tmp_path: Path) -> None:
    emb, bias = minus_one(4, 2), minus_one(4, name="bias")
    for given in (None, ""):
        assert warm_start(prefix, given, {"emb": info(tmp_path)}).restored == ("emb",)
    assert emb[0].tolist() == [14, 15]
    assert bias.eq(-1).all()
    fixed = minus_one(2, name="stat", trainable=False)
    with pytest.raises(ValueError, match="var_name_to_vocab_info: 'stat' are no variables that are warm-started"):
        warm_start(prefix, None, {"stat": info(tmp_path)})
    assert fixed.eq(-1).all()


@pytest.mark.parametrize("given", [("emb",), {"emb"}, 5, ["emb", torch.zeros(1)], [None], torch.zeros(1)])
def test_other_choices_are_a_value_error(given: Any, prefix: str) -> None:
    kept = minus_one(4, 2)
    with pytest.raises(
        ValueError, match="vars_to_warm_start is a pattern, a list of patterns, a list of tensors or None"
    ):
        warm_start(prefix, given)
    assert kept.eq(-1).all()


def test_choice_by_what_is_no_pattern_is_a_value_error_that_shows_it(prefix: str) -> None:
    kept = minus_one(4, 2)
    for given in ("(", ["emb", "("]):
        with pytest.raises(ValueError, match=re.escape("vars_to_warm_start: '(' is no pattern")):
            warm_start(prefix, given)
    assert kept.eq(-1).all()


def test_without_any_variables_it_is_an_error_as_a_saver_is(prefix: str) -> None:
    with pytest.raises(ts.VarListError, match="there are no variables to warm-start"):
        warm_start(prefix)


def test_var_list_is_anything_a_saver_takes_and_its_names_are_keys(prefix: str) -> None:
    model = nn.ModuleDict({"net": nn.Linear(3, 4)})
    optimizer = torch.optim.SGD(model.parameters())
    names = {"m.net.weight": "kern", "m.net.bias": "bias"}
    with pytest.raises(ts.MismatchError, match=r"m.net.weight: shape \[3, 4\] in checkpoint, \[4, 3\] in the model"):
        warm_start(prefix, var_name_to_prev_var_name=names, var_list={"m": model, "optimizer": optimizer})
    report = warm_start(prefix, var_list={"kern": dense(model["net"].weight), "bias": model["net"].bias})
    assert sorted(report.restored) == ["bias", "kern"]
    assert torch.equal(model["net"].weight, KERN.t())
    assert warm_start(prefix, "emb", var_list=[("emb", nn.Parameter(torch.zeros(4, 2)))]).restored == ("emb",)


def test_tied_variable_is_called_by_any_of_its_names(prefix: str, tmp_path: Path) -> None:
    model = nn.ModuleDict({name: nn.Embedding(4, 2) for name in ("emb", "out")})
    model["out"].weight = model["emb"].weight
    tied = ts.Saver({"out.weight": EMB}).save(tmp_path / "tied")
    for given in ("out", "emb", [r"out\.weight"], [model["out"].weight]):
        nn.init.zeros_(model["emb"].weight)
        assert warm_start(str(tied), given, var_list=model).restored == ("emb.weight",)
        assert torch.equal(model["emb"].weight, EMB)
    warm_start(prefix, ".*", None, {"out.weight": "emb"}, var_list=model)
    warm_start(str(tied), ".*", {"out.weight": info(tmp_path)}, var_list=model)
    assert model["emb"].weight[0].tolist() == [14, 15]


# ---- under which names


def test_two_variables_may_come_from_one_previous_name(prefix: str) -> None:
    one, two = minus_one(4, 2, name="e2"), minus_one(4, 2, name="e3")
    report = warm_start(prefix, ".*", None, {"e2": "emb", "e3": "emb"})
    assert report.restored == ("e2", "e3")
    assert torch.equal(one, EMB)
    assert torch.equal(two, EMB)


def test_previous_name_may_be_a_variable_name_of_an_object_graph() -> None:
    case = Path(__file__).parent / "data" / "corpus" / "keras2_save_weights" / "weights"
    with ts.load_checkpoint(case) as reader:
        graph = reader.object_graph()
        assert graph is not None
        key, value = next((key, value) for key, value in graph.keys.items() if "kernel" in value.full_name)
        expected = reader.get_tensor(key)
    target = nn.Parameter(torch.zeros_like(expected))
    warm_start(case, ".*", var_list={value.full_name: target})
    assert torch.equal(target, expected)


def test_all_that_is_missing_or_does_not_fit_is_in_one_error_and_nothing_changes(prefix: str, tmp_path: Path) -> None:
    shapes = {"emb": (4, 2), "bias": (5,), "kernel": (3, 4), "other": (2,)}
    kept = [minus_one(*shape, name=name) for name, shape in shapes.items()]
    with pytest.raises(ts.MismatchError) as caught:
        warm_start(prefix, ".*", {"emb": info(tmp_path), "kernel": info(tmp_path, axis=1)}, {"other": "stats"})
    assert caught.value.missing == ("kernel", "other")
    assert caught.value.shapes == (("bias", [4], [5]),)
    assert "other: not in the checkpoint as 'stats'" in str(caught.value)
    assert "kernel: not in the checkpoint; nearest: 'kern'" in str(caught.value)
    assert all(one.eq(-1).all() for one in kept)


@pytest.mark.parametrize("argument", ["var_name_to_vocab_info", "var_name_to_prev_var_name"])
def test_name_that_is_not_used_is_a_value_error_before_anything_is_read(argument: str, tmp_path: Path) -> None:
    kept = minus_one(4, 2, name="embeddings")
    value = info(tmp_path) if argument == "var_name_to_vocab_info" else "emb"
    message = f"{argument}: 'embedding', 'zz' are no variables that are warm-started; nearest: 'embeddings'"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        warm_start(tmp_path / "none", ".*", **{argument: {"embedding": value, "zz": value, "embeddings": value}})
    with pytest.raises(ValueError, match="'embeddings' are no variables that are warm-started"):
        warm_start(tmp_path / "none", "x", **{argument: {"embeddings": value}})
    assert kept.eq(-1).all()


@pytest.mark.parametrize("name", ["", None, 3])
def test_previous_name_that_is_none_is_a_value_error(name: Any, prefix: str) -> None:
    kept = minus_one(4, 2)
    with pytest.raises(ValueError, match="var_name_to_prev_var_name: 'emb': a name was wanted"):
        warm_start(prefix, ".*", None, {"emb": name})
    assert kept.eq(-1).all()


def test_checkpoint_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    kept = minus_one(4, 2)
    with pytest.raises(ts.CheckpointNotFoundError):
        warm_start(tmp_path / "none")
    assert kept.eq(-1).all()


# ---- vocabularies


def test_vocab_info_has_tensorflow_fields_and_defaults() -> None:
    assert VocabInfo("new", 1, 0, "old") == ("new", 1, 0, "old", -1, None, 0)
    assert VocabInfo._fields == (
        *("new_vocab", "new_vocab_size", "num_oov_buckets", "old_vocab"),
        *("old_vocab_size", "backup_initializer", "axis"),
    )


def test_rows_follow_the_lines_and_new_ones_and_buckets_are_zeros(prefix: str, tmp_path: Path) -> None:
    # As in TF: [[14, 15], [0, 0], [10, 11], [0, 0], [0, 0], [0, 0]]
    found = start(prefix, minus_one(6, 2), info(tmp_path, oov=2))
    assert found.tolist() == [[14, 15], [0, 0], [10, 11], [0, 0], [0, 0], [0, 0]]


def test_columns_follow_the_lines(prefix: str, tmp_path: Path) -> None:
    found = start(prefix, minus_one(3, 5, name="kern"), info(tmp_path, oov=1, axis=1), "kern")  # as in TF
    assert found.tolist() == [[102, 0, 100, 0, 0], [106, 0, 104, 0, 0], [110, 0, 108, 0, 0]]


def test_backup_initializer_is_asked_once_for_all_new_entries(prefix: str, tmp_path: Path) -> None:
    # TF: twice, for [missing elements, 1] and for [buckets, columns] or [rows, buckets]; the values go to the same places
    asked = []

    def initializer(shape: list[int]) -> torch.Tensor:
        asked.append(shape)
        return torch.arange(np.prod(shape)).reshape(shape) + 500

    found = start(prefix, minus_one(5, 2), info(tmp_path, oov=1, backup_initializer=initializer))
    assert found.tolist() == [[14, 15], [500, 501], [10, 11], [502, 503], [504, 505]]
    found = start(
        prefix, minus_one(3, 5, name="kern"), info(tmp_path, oov=1, axis=1, backup_initializer=initializer), "kern"
    )
    assert found.tolist() == [[102, 500, 100, 501, 502], [106, 503, 104, 504, 505], [110, 506, 108, 507, 508]]
    assert asked == [[3, 2], [3, 3]]
    start(prefix, minus_one(2, 2), info(tmp_path, ["b", "a"], backup_initializer=initializer))
    assert len(asked) == 2


@pytest.mark.parametrize(
    "initializer",
    [np.ones, torch.ones, lambda shape: np.ones(shape, np.int64).tolist(), lambda s: torch.ones(s, requires_grad=True)],
)
def test_backup_initializer_gives_a_tensor_an_array_or_lists(initializer: Any, prefix: str, tmp_path: Path) -> None:
    found = start(prefix, minus_one(4, 2), info(tmp_path, backup_initializer=initializer))
    assert found.tolist() == [[14, 15], [1, 1], [10, 11], [1, 1]]


def test_backup_initializer_that_fails_or_gives_another_shape_changes_nothing(prefix: str, tmp_path: Path) -> None:
    kept = [minus_one(4, name="bias"), minus_one(4, 2)]

    def raising(_: Any) -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        warm_start(prefix, ".*", {"emb": info(tmp_path, backup_initializer=raising)})
    with pytest.raises(ValueError, match=r"emb: backup_initializer gave shape \[2\], and \[2, 2\] was wanted"):
        warm_start(prefix, ".*", {"emb": info(tmp_path, backup_initializer=lambda _: torch.ones(2))})
    with pytest.raises(TypeError, match="emb: backup_initializer is a function of a shape, not a int"):
        warm_start(prefix, ".*", {"emb": info(tmp_path, backup_initializer=3)})
    assert all(one.eq(-1).all() for one in kept)


def test_sizes_limit_the_lines_that_count(prefix: str, tmp_path: Path) -> None:
    found = start(prefix, minus_one(4, 2), info(tmp_path, old_vocab_size=2))  # as in TF: c is not known then
    assert found.tolist() == [[0, 0], [0, 0], [10, 11], [0, 0]]
    assert start(prefix, minus_one(2, 2), info(tmp_path, new_vocab_size=2)).tolist() == [[14, 15], [0, 0]]
    twice = [*OLD[:2], "a", "d"]  # as in TF, a line that does not count may stand twice, or be empty
    assert start(
        prefix, minus_one(2, 2), info(tmp_path, ["b", "a", "b", ""], twice, new_vocab_size=2, old_vocab_size=2)
    )[0].tolist() == [12, 13]


def test_checkpoint_may_have_more_rows_than_the_old_vocabulary_and_not_less(prefix: str, tmp_path: Path) -> None:
    assert start(prefix, minus_one(4, 2), info(tmp_path, OLD, ["a", "b"])).tolist()[2:] == [[0, 0], [0, 0]]  # as in TF
    with pytest.raises(ValueError, match=r"emb: '.*old_vocab' has 5 lines, and the checkpoint 4 entries"):
        start(prefix, minus_one(4, 2), info(tmp_path, NEW, [*OLD, "e"]))  # TF: InternalError


def test_vocabularies_with_nothing_in_common_give_new_entries_only(prefix: str, tmp_path: Path) -> None:
    assert not start(prefix, minus_one(2, 2), info(tmp_path, ["q", "r"])).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_entries_of_any_dtype_are_moved_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    stored, target = any_bits((4, 3), dtype), torch.zeros(4, 3).to(dtype)  # TF: float32 only
    saved = ts.Saver({"emb": stored}).save(tmp_path / "m")
    start(str(saved), target, info(tmp_path, ["d", "x", "b", "c"]))
    if dtype != torch.bool:  # of which torch makes every byte 0 or 1
        assert [content(target[at]) for at in (0, 2, 3)] == [content(stored[at]) for at in (3, 1, 2)]
    assert not any(content(target[1])[2])


def test_bias_and_values_of_more_dimensions_have_vocabularies_too(prefix: str, tmp_path: Path) -> None:
    # TF: a bias is an IndexError, and so is anything else but a matrix
    assert start(prefix, minus_one(4, name="bias"), info(tmp_path), "bias").tolist() == [2, 0, 0, 0]
    values = torch.rand(2, 4, 3)
    saved = ts.Saver({"emb": values}).save(tmp_path / "m")
    found = start(str(saved), minus_one(2, 4, 3), info(tmp_path, axis=1))
    assert torch.equal(found[:, 0], values[:, 2])
    assert torch.equal(found[:, 2], values[:, 0])
    saved = ts.Saver({"emb": torch.zeros(4, 0)}).save(tmp_path / "m")
    assert start(str(saved), minus_one(4, 0), info(tmp_path)).numel() == 0


def test_vocabulary_of_a_layout_is_one_of_the_stored_value(prefix: str, tmp_path: Path) -> None:
    weight, parts = torch.zeros(4, 3), [torch.zeros(1, 3), torch.zeros(3, 3)]
    report = warm_start(
        prefix,
        [".*"],
        {name: info(tmp_path, axis=1) for name in ("kern", "parts")},
        {"parts": "kern"},
        var_list={"kern": dense(weight), "parts": dense(*parts, join=Concat(0))},
    )
    assert report.restored == ("kern", "parts")
    assert weight.tolist() == [[102, 106, 110], [0, 0, 0], [100, 104, 108], [0, 0, 0]]
    assert torch.equal(torch.cat(parts), weight)


@pytest.mark.parametrize(
    ("shape", "oov", "axis"),
    [((5, 2), 0, 0), ((3, 2), 0, 0), ((4, 2), 1, 0), ((4, 2), 0, 1), ((4,), 0, 1)],
)
def test_variable_of_another_size_than_its_vocabulary_is_a_value_error(
    shape: tuple[int, ...], oov: int, axis: int, prefix: str, tmp_path: Path
) -> None:
    kept = minus_one(*shape)
    message = (
        f"emb: new_vocab_size 4 and num_oov_buckets {oov} come to {4 + oov}, and the variable, as it is stored, has"
    )
    with pytest.raises(ValueError, match=message):  # TF: a variable of fewer rows gets the first ones
        start(prefix, kept, info(tmp_path, oov=oov, axis=axis))
    assert kept.eq(-1).all()


@pytest.mark.parametrize("shape", [(4, 3), (4,), (4, 2, 1)])
def test_other_dimensions_have_to_be_those_stored(shape: tuple[int, ...], prefix: str, tmp_path: Path) -> None:
    kept = minus_one(*shape)
    with pytest.raises(ts.MismatchError, match=r"emb: vocabulary of 'new': shape \[4, 2\] is stored, and"):
        start(prefix, kept, info(tmp_path))
    assert kept.eq(-1).all()


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("axis", 2, "axis is 0 or 1, not 2"),
        ("new_vocab_size", 0, "new_vocab_size is 1 at least, not 0"),
        ("new_vocab_size", -1, "new_vocab_size is 1 at least, not -1"),
        ("new_vocab_size", None, "new_vocab_size is an integer, not None"),
        ("new_vocab_size", 4.0, "new_vocab_size is an integer or None, not float"),
        ("num_oov_buckets", -1, "num_oov_buckets is 0 at least, not -1"),  # TF: takes rows away
        ("old_vocab_size", 0, "old_vocab_size is -1, for all lines, or 1 at least, not 0"),
        ("old_vocab_size", -2, "old_vocab_size is -1 at least, not -2"),
    ],
)
def test_vocab_info_with_other_numbers_is_an_error(
    field: str, value: Any, error: str, prefix: str, tmp_path: Path
) -> None:
    kept = minus_one(4, 2)
    with pytest.raises((TypeError, ValueError), match=f"^emb: {error}$"):  # TF: axis when the VocabInfo is made
        start(prefix, kept, info(tmp_path)._replace(**{field: value}))
    assert kept.eq(-1).all()


def test_what_is_no_vocab_info_is_a_type_error(prefix: str, tmp_path: Path) -> None:
    kept = minus_one(4, 2)
    with pytest.raises(TypeError, match="emb: a VocabInfo was wanted, not a tuple"):
        warm_start(prefix, ".*", {"emb": tuple(info(tmp_path))})  # type: ignore[dict-item]
    assert kept.eq(-1).all()


# ---- vocabulary files


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (b"c\nx\na\ny", [2, None, 0, None]),  # no newline at the end
        (b"c\r\nx\r\na\r\ny\r\n", [2, None, 0, None]),
        (b"c \n a\nb\ny\n", [None, None, 1, None]),  # spaces count
        (b"c\t5\na\t3\nb\ny\n", [None, None, 1, None]),
        (b"c\n\xff\xfe\na\ny\n", [2, None, 0, None]),  # not UTF-8
        ("c\x0bx\na\x85\n\u2028\nb\n".encode(), [None, None, None, 1]),  # other ends of lines are none
    ],
)
def test_lines_are_those_tensorflow_sees(new: bytes, expected: list[int | None], prefix: str, tmp_path: Path) -> None:
    found = start(prefix, minus_one(4, 2), info(tmp_path, new, new_vocab_size=4))
    assert found.tolist() == [[0, 0] if row is None else EMB[row].tolist() for row in expected]


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (["a", "b", "c"], "has 3 lines, and 4 were wanted"),
        (b"", "has 0 lines, and 4 were wanted"),
        (["a", "b", "a", "d"], "lines 1 and 3 are both 'a'"),
        (["a", "", "c", "d"], "line 2 is empty"),
        (b"a\n\n\n\n\n", "line 2 is empty"),
        (b"a\0\nb\nc\nd\n", "is no text file"),
    ],
)
@pytest.mark.parametrize("which", ["new_vocab", "old_vocab"])
def test_file_that_is_no_vocabulary_is_a_value_error_that_names_it(
    which: str, lines: Any, error: str, prefix: str, tmp_path: Path
) -> None:
    # TF: UnimplementedError, FailedPreconditionError, InvalidArgumentError; the same line twice among the new ones is none
    # unless the old ones have it
    kept = [minus_one(4, 2), minus_one(4, name="bias")]
    files = {
        "new_vocab": info(tmp_path, lines, new_vocab_size=4),
        "old_vocab": info(tmp_path, None, lines, old_vocab_size=4),
    }
    vocab_info = files[which]
    if which == "new_vocab":
        vocabulary(tmp_path, "new", lines)
    with pytest.raises(ValueError, match=f"^emb: {which} '.*' {error}|^emb: {which} '.*': {error}") as caught:
        warm_start(prefix, ".*", {"emb": vocab_info})
    assert str(getattr(vocab_info, which)) in str(caught.value)
    assert all(one.eq(-1).all() for one in kept)


def test_empty_old_vocabulary_is_too_short_too(prefix: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"old_vocab '.*' has 0 lines, and 1 were wanted"):
        start(prefix, minus_one(4, 2), info(tmp_path, None, b""))


def test_file_that_is_not_there_or_none_passes_as_the_system_gave_it(prefix: str, tmp_path: Path) -> None:
    kept = minus_one(4, 2)
    with pytest.raises(FileNotFoundError, match="gone"):
        start(prefix, kept, info(tmp_path)._replace(new_vocab=tmp_path / "gone"))
    with pytest.raises(IsADirectoryError):
        start(prefix, kept, info(tmp_path)._replace(old_vocab=str(tmp_path)))
    with pytest.raises(TypeError, match="old_vocab is a path"):
        start(prefix, kept, info(tmp_path)._replace(old_vocab=3))
    if sys.platform != "win32":
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(ValueError, match="no regular file"):
            start(prefix, kept, info(tmp_path)._replace(old_vocab=tmp_path / "fifo"))
    assert kept.eq(-1).all()


def test_path_of_a_vocabulary_may_be_bytes(prefix: str, tmp_path: Path) -> None:
    given = info(tmp_path)._replace(new_vocab=os.fsencode(tmp_path / "new"))
    assert start(prefix, minus_one(4, 2), given)[0].tolist() == [14, 15]


def test_lazy_parameter_is_refused_as_by_a_restore(prefix: str, tmp_path: Path) -> None:
    layer = nn.LazyLinear(4, bias=False)
    with pytest.raises(ts.MismatchError, match="kern: is a lazy parameter without a shape yet"):
        warm_start(prefix, ".*", {"kern": info(tmp_path, axis=1)}, var_list={"kern": dense(layer.weight)})


def test_hundred_thousand_words_in_another_order_take_no_time_to_speak_of(tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(100_000)]
    order = torch.randperm(len(words), generator=torch.Generator().manual_seed(0))
    stored = torch.arange(2.0 * len(words)).reshape(-1, 2)
    saved = ts.Saver({"emb": stored}).save(tmp_path / "m")
    found = start(str(saved), minus_one(len(words), 2), info(tmp_path, [words[at] for at in order], words))
    assert torch.equal(found, stored[order])

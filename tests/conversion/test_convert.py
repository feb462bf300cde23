"""Converting: bit for bit, all or nothing, in memory for a tensor, and with nothing lost that is not named."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import corpus
import numpy as np
import pytest
import torch
from faults.crash_states import materialise, snapshot
from faults.dying_disk import Fault, faults, install, open_files
from faults.promises import make_repeatable
from safetensors.torch import load_file, save_file

import torchsaver as ts
from torchsaver.conversion import convert as convert_module
from torchsaver.conversion.convert import (
    Conversion,
    convert_checkpoint,
    destination_prefix,
    read_rules_file,
)
from torchsaver.conversion.plan import ConversionError, Format
from torchsaver.errors import CheckpointNotFoundError, CorruptCheckpointError, UnsupportedCheckpointError
from torchsaver.formats.tensor_bytes import byte_view
from torchsaver.formats.tensorflow.data_types import DATA_TYPES
from torchsaver.formats.tensorflow.stored_value import key_text
from torchsaver.inspection.reports import Progress
from torchsaver.storage import bundle_files, paths
from torchsaver.variables.rules_file import parse_rules

FORMATS: tuple[Format, ...] = ("safetensors", "tf")
STRINGS, GRAPH = "strings, which safetensors cannot hold", "the graph of TensorFlow's objects"
VARIANT = "a variant, the state of a TensorFlow object"
# Keys of the corpus that safetensors cannot hold.
PRINTABLE = "[[rename]]\nregex = '[\\udc80-\\udcff]'\nto = '_'\n[[rename]]\nname = '__metadata__'\nto = 'metadata'"


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, list[int], bytes]:
    """Return all that a tensor is."""
    return tensor.dtype, list(tensor.shape), bytes(byte_view(tensor.contiguous()))


def contents(save_path: str | Path) -> dict[str, Any]:
    """Return every value of a checkpoint, under each of its names."""
    with ts.load_checkpoint(save_path) as reader:
        values = {key: reader.get_tensor(key) for key in [*reader.keys(), *reader.aliases]}
    return {key: value.tolist() if isinstance(value, np.ndarray) else bits(value) for key, value in values.items()}


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def written_rules(path: Path, text: str) -> Any:
    path.write_text(text)
    return read_rules_file(path)


# ---- checkpoints of real TensorFlow


def _left_out(case: str, to: Format) -> dict[str, str]:
    found = {}
    for tensor in corpus.expected(case)["tensors"]:
        key, name = key_text(corpus.key_of(tensor)), DATA_TYPES[tensor["enum"]].name
        if key == "_CHECKPOINTABLE_OBJECT_GRAPH":
            found[key] = GRAPH
        elif name == "variant":
            found[key] = VARIANT
        elif name == "string" and to == "safetensors":
            found[key] = STRINGS
    return found


@pytest.mark.parametrize("case", corpus.CASES)
def test_corpus_becomes_safetensors_bit_for_bit_and_tensorflows_again(case: str, tmp_path: Path) -> None:
    rules = parse_rules(PRINTABLE)
    stored = {key: value for key, value in contents_of_case(case).items() if isinstance(value, tuple)}
    wanted = {str(rules.rename(key)): value for key, value in stored.items()}
    done = convert_checkpoint(corpus.prefix(case), tmp_path / "m", rules=rules)
    assert {key: bits(tensor) for key, tensor in load_file(tmp_path / "m.safetensors").items()} == _as_stored(wanted)
    assert contents(tmp_path / "m") == wanted
    assert done.left_out == _left_out(case, "safetensors")
    assert ts.verify_checkpoint(tmp_path / "m").verdict == "valid"
    again = convert_checkpoint(tmp_path / "m", tmp_path / "again", to="tf")
    assert contents(tmp_path / "again") == wanted
    assert again.left_out == {}


def contents_of_case(case: str) -> dict[str, Any]:
    with ts.load_checkpoint(corpus.prefix(case)) as reader:
        left_out = _left_out(case, "tf")
        values = {key: reader.get_tensor(key) for key in reader.keys() if key not in left_out}
    return {key: value.tolist() if isinstance(value, np.ndarray) else bits(value) for key, value in values.items()}


def _as_stored(wanted: dict[str, Any]) -> dict[str, Any]:
    """Return values as safetensors itself has them: complex128 are pairs of float64."""
    pair = torch.complex128
    return {k: (torch.float64, [*s, 2], b) if d == pair else (d, s, b) for k, (d, s, b) in wanted.items()}


@pytest.mark.parametrize("case", corpus.CASES)
def test_corpus_becomes_tensorflows_again_with_its_strings_and_odd_names(case: str, tmp_path: Path) -> None:
    done = convert_checkpoint(corpus.prefix(case), tmp_path / "m", to="tf")
    assert contents(tmp_path / "m") == contents_of_case(case)
    assert done.left_out == _left_out(case, "tf")


def test_names_that_safetensors_cannot_have_are_told_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConversionError) as raised:
        convert_checkpoint(corpus.prefix("non_utf8_names_v2"), tmp_path / "m")
    assert len(raised.value.problems) == 2
    assert names(tmp_path) == []


@pytest.mark.parametrize("max_shard_bytes", [None, 64])
def test_bundle_to_safetensors_and_back_has_the_same_bytes(max_shard_bytes: int | None, tmp_path: Path) -> None:
    values = {f"v{n}": torch.arange(n, n + 5, dtype=torch.float32) for n in range(5)} | {
        "v5/half": torch.ones(3, 2, dtype=torch.bfloat16),
        "v6": torch.tensor(7),
        "v7": torch.zeros(0, 3),
        "v8": torch.ones(2, dtype=torch.complex128),
    }
    source = ts.save_tf_checkpoint(tmp_path / "a" / "m", values, max_shard_bytes=max_shard_bytes)
    convert_checkpoint(source, tmp_path / "b" / "m")
    convert_checkpoint(tmp_path / "b" / "m", tmp_path / "c" / "m", to="tf", max_shard_bytes=max_shard_bytes)
    assert names(tmp_path / "a") == names(tmp_path / "c")
    assert len(names(tmp_path / "a")) == (2 if max_shard_bytes is None else 4)
    for name in names(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()


# ---- torchsaver's own


class Counter:
    """An object whose state is no tensor."""

    def __init__(self) -> None:
        self.count = 0

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "seen": torch.full((2,), float(self.count))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
        assert state["seen"].tolist() == [self.count] * 2


@pytest.fixture
def own(tmp_path: Path) -> tuple[str, dict[str, Any]]:
    """A checkpoint of all that a Saver stores: tied weights, complex128, objects' state, metadata and a step."""
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    counter = Counter()
    counter.count = 5
    values = {"model": model, "z": torch.tensor([1 + 2j], dtype=torch.complex128), "counter": counter}
    return ts.Saver(values).save(tmp_path / "own" / "m", 7, metadata={"loss": 0.5}), values


@pytest.mark.parametrize("max_shard_bytes", [None, 20])
def test_own_checkpoint_stays_all_that_it_is(
    max_shard_bytes: int | None, own: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    source, values = own
    done = convert_checkpoint(source, tmp_path / "new", max_shard_bytes=max_shard_bytes)
    assert contents(tmp_path / "new") == contents(source)
    assert done.left_out == {}
    with ts.load_checkpoint(source) as old, ts.load_checkpoint(tmp_path / "new") as new:
        assert new.keys() == old.keys()
        assert new.aliases == old.aliases
        assert "model.b.weight" in new.aliases
        assert (new.global_step, new.metadata, new.object_trees) == (7, {"loss": 0.5}, old.object_trees)
        assert new.manifest.commit is None
    values["counter"].count = 0
    with torch.no_grad():
        values["model"]["a"].weight.zero_()
    ts.Saver(values).restore(tmp_path / "new")
    assert values["counter"].count == 5
    assert values["model"]["a"].weight.abs().sum() > 0
    assert ts.verify_checkpoint(tmp_path / "new").verdict == "valid"
    assert (len(list(tmp_path.glob("new-*.safetensors"))) > 1) == (max_shard_bytes is not None)


def test_own_checkpoint_becomes_tensorflows_with_each_name_of_what_was_tied(
    own: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    source, _ = own
    done = convert_checkpoint(source, tmp_path / "new", to="tf")
    assert contents(tmp_path / "new") == contents(source)
    with ts.load_checkpoint(tmp_path / "new") as reader:
        assert "model.b.weight" in reader.keys()
    assert done.left_out == {
        "metadata": "TensorFlow's files have no place for it",
        "global_step": "TensorFlow's files have no place for it",
        "state of 'counter'": "only its tensors are converted",
    }


def test_own_checkpoint_under_other_names_keeps_all_but_the_state_of_objects(
    own: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    source, _ = own
    rules = parse_rules('[[rename]]\nscope = "model."\nto = ""')
    done = convert_checkpoint(source, tmp_path / "new", rules=rules)
    assert done.left_out == {"state of 'counter'": "only its tensors are converted"}
    assert contents(tmp_path / "new") == {str(rules.rename(key)): value for key, value in contents(source).items()}
    with ts.load_checkpoint(tmp_path / "new") as reader:
        assert reader.aliases == {"b.weight": "a.weight"}
        assert (reader.global_step, reader.metadata, reader.object_trees) == (7, {"loss": 0.5}, {})


def test_file_of_a_third_party_gets_checksums(tmp_path: Path) -> None:
    save_file({"w": torch.ones(3)}, tmp_path / "theirs.safetensors")
    convert_checkpoint(tmp_path / "theirs.safetensors", tmp_path / "m")
    assert ts.verify_checkpoint(tmp_path / "theirs").verdict == "no_checksums"
    assert ts.verify_checkpoint(tmp_path / "m").verdict == "valid"


# ---- files of torch.save


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("is_zip", [True, False])
def test_file_of_torch_save_is_converted_bit_for_bit(to: Format, *, is_zip: bool, tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    state = {
        "tied": base,
        "same": base.detach(),
        "turned": base.t(),
        "strided": base[::2, 1:],
        "expanded": torch.ones(1).expand(3),
        "nan": torch.tensor([float("nan"), -0.0]),
        "conj": torch.tensor([1 + 2j]).conj(),
        "step": torch.tensor(3),
        "flags": torch.tensor([True, False]),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "weight": torch.nn.Parameter(torch.ones(2)),
        "empty": torch.zeros(0, 2),
    }
    torch.save({**state, "epoch": 1}, tmp_path / "m.pt", _use_new_zipfile_serialization=is_zip)
    done = convert_checkpoint(tmp_path / "m.pt", tmp_path / "new", to=to)
    wanted = {key: bits(tensor.detach().clone().contiguous().resolve_conj()) for key, tensor in state.items()}
    assert contents(tmp_path / "new") == wanted
    assert done.left_out == {"epoch": "no tensor"}
    with ts.load_checkpoint(tmp_path / "new") as reader:
        assert reader.aliases == ({"same": "tied"} if to == "safetensors" else {})


def test_state_dict_within_others_comes_out_by_rules(tmp_path: Path) -> None:
    model, rules = torch.nn.Linear(2, 2), '[[rename]]\nscope = "state_dict."\nto = ""\n'
    optimizer = torch.optim.Adam(model.parameters())
    torch.save({"state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}, tmp_path / "m.ckpt")
    drop = '[[rename]]\nscope = "optimizer."\ndrop = true'
    done = convert_checkpoint(tmp_path / "m.ckpt", tmp_path / "new", rules=parse_rules(rules + drop))
    loaded = load_file(tmp_path / "new.safetensors")
    model.load_state_dict(loaded)
    assert done.left_out == {"optimizer": "no tensor", "epoch": "no tensor"}


def test_shards_of_torch_save_are_one_checkpoint(tmp_path: Path) -> None:
    weight_map = {}
    for n in range(3):
        torch.save({f"w{n}": torch.full((2,), float(n))}, tmp_path / f"model-{n}.bin")
        weight_map[f"w{n}"] = f"model-{n}.bin"
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 24}, "weight_map": weight_map}))
    convert_checkpoint(index, tmp_path / "new")
    assert {key: tensor.tolist() for key, tensor in load_file(tmp_path / "new.safetensors").items()} == {
        f"w{n}": [n] * 2 for n in range(3)
    }


def test_tensors_that_cannot_be_converted_are_all_told_and_nothing_is_written(tmp_path: Path) -> None:
    content = {
        "meta": torch.ones(3, device="meta"),
        "sparse": torch.eye(2).to_sparse(),
        "a.b": torch.zeros(1),
        "a": {"b": torch.ones(1)},
        "good": torch.ones(1),
    }
    torch.save(content, tmp_path / "m.pt")
    for to in FORMATS:
        with pytest.raises(ConversionError) as raised:
            convert_checkpoint(tmp_path / "m.pt", tmp_path / "new", to=to)
        assert [problem.split("'")[1] for problem in raised.value.problems] == ["meta", "sparse", "a.b"]
    assert names(tmp_path) == ["m.pt"]


def test_file_with_classes_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(1, 1), tmp_path / "m.pt")
    with pytest.raises(UnsupportedCheckpointError, match=r"it holds torch\.nn\.modules\.linear\.Linear"):
        convert_checkpoint(tmp_path / "m.pt", tmp_path / "new")


# ---- rules


TO_TORCH = """
    [[rename]]
    scope = "net/"
    to = ""
    [[rename]]
    regex = 'dense_(\\d+)/'
    to = 'layers.\\1.'
    [[rename]]
    regex = '\\bkernel$'
    to = "weight"
    [[rename]]
    name = "global_step"
    drop = true
    [[layout]]
    regex = 'net/.*/kernel'
    transform = "dense"
"""
TO_TENSORFLOW = """
    [[rename]]
    regex = 'layers\\.(\\d+)\\.'
    to = 'net/dense_\\1/'
    [[rename]]
    regex = '/weight$'
    to = "/kernel"
    [[layout]]
    regex = 'net/.*/kernel'
    transform = "dense"
"""


def test_rules_lead_from_tensorflow_to_a_module_and_back(tmp_path: Path) -> None:
    kernel, bias = torch.arange(6.0).reshape(2, 3), torch.ones(3)
    values = {"net/dense_0/bias": bias, "net/dense_0/kernel": kernel, "global_step": torch.tensor(9)}
    source = ts.save_tf_checkpoint(tmp_path / "tf" / "m", values)
    rules = written_rules(tmp_path / "rules.toml", TO_TORCH)
    done = convert_checkpoint(source, tmp_path / "m", rules=rules)
    assert done.left_out == {"global_step": "a rule leaves it out"}
    module = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Linear(2, 3)])})
    module.load_state_dict(load_file(tmp_path / "m.safetensors"))
    assert torch.equal(module["layers"][0].weight, kernel.t())
    back = written_rules(tmp_path / "back.toml", TO_TENSORFLOW)
    convert_checkpoint(tmp_path / "m", tmp_path / "back", to="tf", rules=back)
    del values["global_step"]
    assert contents(tmp_path / "back") == {key: bits(tensor) for key, tensor in values.items()}
    torch.save(module.state_dict(), tmp_path / "m.pt")
    convert_checkpoint(tmp_path / "m.pt", tmp_path / "from_pt", to="tf", rules=back)
    assert contents(tmp_path / "from_pt") == contents(tmp_path / "back")


def test_layout_that_does_not_fit_is_told_with_all_others_and_nothing_is_written(tmp_path: Path) -> None:
    source = ts.save_tf_checkpoint(tmp_path / "m", {"a": torch.ones(2), "b": torch.ones(2, 2), "c": torch.ones(1)})
    rules = parse_rules("[[layout]]\nregex = '.*'\ntransform = 'dense'")
    before = snapshot(str(tmp_path))
    with pytest.raises(ConversionError) as raised:
        convert_checkpoint(source, tmp_path / "new", rules=rules)
    assert [problem[:3] for problem in raised.value.problems] == ["'a'", "'c'"]
    assert snapshot(str(tmp_path)) == before


def test_rules_file_that_is_wrong_is_named_with_its_table(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    for text, told in ((b"[[layout]]", r"\[\[layout\]\] 1 wants"), (b"a =", "no TOML"), (b"\xff", "utf-8")):
        path.write_bytes(text)
        with pytest.raises(ValueError, match=f"rules.toml': .*{told}"):
            read_rules_file(path)
    with pytest.raises(FileNotFoundError):
        read_rules_file(tmp_path / "none.toml")


# ---- the destination


@pytest.mark.parametrize(
    ("given", "to", "prefix"),
    [
        ("d/m", "safetensors", "d/m"),
        ("d/m.safetensors", "safetensors", "d/m"),
        ("d/m.safetensors.index.json", "safetensors", "d/m"),
        ("d/m.ckpt", "tf", "d/m.ckpt"),
        ("d/m.ckpt.index", "tf", "d/m.ckpt"),
    ],
)
def test_destination_is_a_prefix_or_one_of_its_files(given: str, to: Format, prefix: str) -> None:
    assert destination_prefix(given, to) == prefix


@pytest.mark.parametrize(
    ("given", "to"),
    [
        ("m.pt", "safetensors"),
        ("m.bin", "tf"),
        ("m.index", "safetensors"),
        ("m.safetensors", "tf"),
        ("m.safetensors.index.json", "tf"),
        ("m.data-00000-of-00001", "tf"),
        ("m.meta", "tf"),
        ("m.safetensors.safetensors", "safetensors"),
        ("m-00001-of-00002", "safetensors"),
        ("d/", "safetensors"),
        ("", "tf"),
        ("checkpoint", "safetensors"),
    ],
)
def test_destination_that_would_be_taken_for_another_file_is_refused(given: str, to: Format) -> None:
    with pytest.raises(ValueError, match=r"destination|save_path|checkpoint"):
        destination_prefix(given, to)


@pytest.fixture
def source(tmp_path: Path) -> str:
    return ts.save_tf_checkpoint(tmp_path / "src" / "m", {"a": torch.arange(3.0), "b": torch.ones(2)})


def test_destination_that_is_a_directory_is_refused(source: str, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "m.safetensors").mkdir()
    (tmp_path / "m.index").mkdir()
    for to in FORMATS:
        for name in ("dir", "m"):
            with pytest.raises(IsADirectoryError):
                convert_checkpoint(source, tmp_path / name, to=to, overwrite=True)
    convert_checkpoint(source, tmp_path / "dir.safetensors")  # a prefix that a directory has too
    assert names(tmp_path / "dir") == names(tmp_path / "m.safetensors") == []


def test_directories_of_the_destination_are_made(source: str, tmp_path: Path) -> None:
    for to in FORMATS:
        convert_checkpoint(source, tmp_path / "new" / to / "m", to=to)
        assert contents(tmp_path / "new" / to / "m") == contents(source)


@pytest.mark.parametrize("to", FORMATS)
def test_checkpoint_that_is_there_is_replaced_only_by_force(to: Format, source: str, tmp_path: Path) -> None:
    other = ts.save_tf_checkpoint(tmp_path / "other", {"x": torch.ones(1)})
    convert_checkpoint(other, tmp_path / "d" / "m", to=to)
    before = snapshot(str(tmp_path))
    for dry_run in (True, False):
        with pytest.raises(FileExistsError, match="--force") as raised:
            convert_checkpoint(source, tmp_path / "d" / "m", to=to, dry_run=dry_run)
        assert raised.value.filename.startswith(str(tmp_path / "d" / "m."))
    assert snapshot(str(tmp_path)) == before
    convert_checkpoint(source, tmp_path / "d" / "m", to=to, overwrite=True)
    assert contents(tmp_path / "d" / "m") == contents(source)


@pytest.mark.parametrize("max_shard_bytes", [None, 8])
@pytest.mark.parametrize("first", [None, 8])
@pytest.mark.parametrize("to", FORMATS)
def test_conversion_onto_itself_loses_nothing(
    to: Format, first: int | None, max_shard_bytes: int | None, source: str, tmp_path: Path
) -> None:
    convert_checkpoint(source, tmp_path / "d" / "m", to=to, max_shard_bytes=first)
    for _ in range(2):
        convert_checkpoint(
            tmp_path / "d" / "m", tmp_path / "d" / "m", to=to, max_shard_bytes=max_shard_bytes, overwrite=True
        )
        assert contents(tmp_path / "d" / "m") == contents(source)
    assert len(names(tmp_path / "d")) <= 4


def test_other_format_beside_it_loses_nothing(source: str) -> None:
    wanted = contents(source)
    convert_checkpoint(source, source)
    assert contents(f"{source}.index") == contents(f"{source}.safetensors") == wanted


@pytest.mark.parametrize("to", FORMATS)
def test_shards_are_of_at_most_so_many_bytes(to: Format, source: str, tmp_path: Path) -> None:
    convert_checkpoint(source, tmp_path / "d" / "m", to=to, max_shard_bytes=12)
    assert len(names(tmp_path / "d")) == 3
    assert contents(tmp_path / "d" / "m") == contents(source)


def test_more_data_files_than_can_be_named_are_refused(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert_module, "MOST_SHARDS", 1)
    with pytest.raises(ConversionError, match="max_shard_bytes 1 makes 2 data files, and 1 can be named"):
        convert_checkpoint(source, tmp_path / "d" / "m", to="tf", max_shard_bytes=1)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"to": "pt"}, ValueError),
        ({"max_shard_bytes": 0}, ValueError),
        ({"max_shard_bytes": "1"}, TypeError),
        ({"destination": None}, TypeError),
        ({"source": 3}, TypeError),
    ],
)
def test_argument_that_is_wrong_is_told_before_anything_is_done(
    arguments: dict[str, Any], kind: type[Exception], source: str, tmp_path: Path
) -> None:
    with pytest.raises(kind):
        convert_checkpoint(**{"source": source, "destination": tmp_path / "d" / "m", **arguments})
    assert not (tmp_path / "d").exists()


# ---- dry runs and progress


@pytest.mark.parametrize("to", FORMATS)
def test_dry_run_writes_nothing_and_tells_what_the_run_does(
    to: Format, own: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    def plan(done: Conversion) -> dict[str, Any]:
        return json.loads(json.dumps(done.as_json()))

    for path in (own[0], corpus.prefix("strings_v2"), corpus.prefix("resnet_like")):
        destination = tmp_path / "new" / os.path.basename(path)
        before = snapshot(str(tmp_path))
        dry = convert_checkpoint(path, destination, to=to, dry_run=True, progress=lambda _: pytest.fail("it is read"))
        assert snapshot(str(tmp_path)) == before
        assert plan(dry) == plan(convert_checkpoint(path, destination, to=to))
        with ts.load_checkpoint(destination) as reader:
            shapes = {row["key"]: row["shape"] for row in plan(dry)["tensors"]}
            assert {key: list(reader.stored(key).shape) for key in reader.keys()} == shapes
            assert sum(row["bytes"] for row in plan(dry)["tensors"]) == plan(dry)["total_bytes"]


@pytest.mark.parametrize("to", FORMATS)
def test_dry_run_tells_the_same_problems(to: Format, tmp_path: Path) -> None:
    torch.save({"m": torch.ones(1, device="meta")}, tmp_path / "m.pt")
    for dry_run in (True, False):
        with pytest.raises(ConversionError, match="meta device"):
            convert_checkpoint(tmp_path / "m.pt", tmp_path / "new", to=to, dry_run=dry_run)


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("case", ["resnet_like", "strings_v2", "scalars_empty_v2"])
def test_progress_is_told_before_each_tensor_and_ends_at_the_total(to: Format, case: str, tmp_path: Path) -> None:
    told: list[Progress] = []
    done = convert_checkpoint(corpus.prefix(case), tmp_path / "new", to=to, progress=told.append)
    total = done.as_json()["total_bytes"]
    assert len(told) == len(done.rows) + 1
    assert told[0] == Progress(0, total, "new")
    assert told[-1] == Progress(total, total, "new")
    counts = [each.done_bytes for each in told]
    assert counts == sorted(counts)


# ---- what is damaged


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("kind", ["tf", "safetensors", "pt"])
def test_flipped_byte_of_the_source_is_an_error_and_no_destination_appears(
    to: Format, kind: str, tmp_path: Path
) -> None:
    values = {"a": torch.full((50,), 1.5), "b": torch.full((50,), 2.5)}
    (tmp_path / "src").mkdir()
    if kind == "pt":
        torch.save(values, tmp_path / "src" / "m.pt")
    else:
        first = ts.save_tf_checkpoint(tmp_path / "tf", values)
        convert_checkpoint(first, tmp_path / "src" / "m", to="tf" if kind == "tf" else "safetensors")
    path = next(each for each in (tmp_path / "src").iterdir() if not each.name.endswith(".index"))
    data = bytearray(path.read_bytes())
    data[data.index(values["b"][:9].numpy().tobytes()) + 8] ^= 1
    path.write_bytes(data)
    given = path if kind == "pt" else tmp_path / "src" / "m"
    convert_checkpoint(given, tmp_path / "dst" / "m", to=to, dry_run=True)  # reads no values
    with pytest.raises(CorruptCheckpointError, match=r"checksum|CRC"):
        convert_checkpoint(given, tmp_path / "dst" / "m", to=to)
    assert names(tmp_path / "dst") == []


@pytest.mark.parametrize("to", FORMATS)
def test_damaged_source_leaves_the_checkpoint_that_was_to_be_replaced(to: Format, source: str, tmp_path: Path) -> None:
    convert_checkpoint(source, tmp_path / "d" / "m", to=to)
    before = snapshot(str(tmp_path / "d"))
    data = Path(f"{source}.data-00000-of-00001")
    data.write_bytes(data.read_bytes()[:-1] + b"\x07")
    with pytest.raises(CorruptCheckpointError):
        convert_checkpoint(source, tmp_path / "d" / "m", to=to, overwrite=True)
    assert snapshot(str(tmp_path / "d")) == before


@pytest.mark.parametrize("case", ["data_flip", "data_flip_string", "data_missing", "index_cut_half", "v1_flip"])
def test_damaged_checkpoints_of_the_corpus_are_refused(case: str, tmp_path: Path) -> None:
    folder = corpus.CORRUPT / case
    prefix = next(
        str(path).removesuffix(".index")
        for path in sorted(folder.iterdir())
        if path.name.endswith(".index") or (case.startswith("v1") and path.suffix != ".json")
    )
    with pytest.raises(CorruptCheckpointError):
        convert_checkpoint(prefix, tmp_path / "m", to="tf")
    assert names(tmp_path) == []


def test_source_that_is_not_there_is_told_and_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        convert_checkpoint(tmp_path / "none", tmp_path / "d" / "m")
    assert names(tmp_path) == []


# ---- a disk that dies


def _outcomes(source: str, root: Path, to: Format, max_shard_bytes: int | None) -> Iterator[tuple[Fault, Any, Any]]:
    """Yield each fault, what it raised, and what is under the destination then."""

    def act() -> None:
        convert_checkpoint(source, root / "m", to=to, max_shard_bytes=max_shard_bytes, overwrite=True)

    start = snapshot(str(root))
    with pytest.MonkeyPatch.context() as patch:
        make_repeatable(patch)
        healthy = install(patch)
        patch.setattr(bundle_files, "os", healthy)
        act()
    assert {"pwritev", "fsync", "replace", "open"} <= set(healthy.calls)
    for fault in faults(healthy.calls):
        materialise(start, str(root))
        error, before = None, open_files()
        with pytest.MonkeyPatch.context() as patch:
            make_repeatable(patch)
            dying = install(patch, fault)
            patch.setattr(bundle_files, "os", dying)
            try:
                act()
            except (OSError, KeyboardInterrupt) as raised:
                error = raised
        del dying
        leaked = open_files() - before
        left = [name for name in names(root) if paths.is_temporary(name)]
        assert leaked <= 0 or error is not None, f"{fault}: {leaked} descriptors"
        assert not left or fault.sticky or "unlink" in healthy.calls[fault.n - 1], f"{fault}: {left}"
        yield fault, error, contents(root / "m")


@pytest.mark.parametrize(("first", "second"), [(None, None), (8, None), (None, 8)])
@pytest.mark.parametrize("to", FORMATS)
def test_disk_that_dies_leaves_the_old_destination_or_the_new_one(
    to: Format, first: int | None, second: int | None, source: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "torchsaver")
    other = ts.save_tf_checkpoint(tmp_path / "other", {"a": torch.zeros(3), "b": torch.zeros(2)})
    (tmp_path / "d").mkdir()
    convert_checkpoint(other, tmp_path / "d" / "m", to=to, max_shard_bytes=first)
    old, new = contents(other), contents(source)
    seen = []
    for fault, error, found in _outcomes(source, tmp_path / "d", to, second):
        assert found in (old, new), str(fault)
        assert error is not None or found == new, str(fault)
        seen.append((error is None, found == new))
    assert {(False, False), (False, True), (True, True)} <= set(seen)


# ---- memory

PROGRAM = """
import re, sys
from torchsaver.conversion.convert import convert_checkpoint
source, to, small, directory = sys.argv[1:]

def mb(name):
    with open("/proc/self/status") as status:
        return int(re.search(name + r":\\s+(\\d+) kB", status.read())[1]) / 1024

convert_checkpoint(small, directory + "/warm", to=to)
with open("/proc/self/clear_refs", "w") as refs:
    refs.write("5")  # the peak is counted from here
whole, own, peak = mb("VmRSS"), mb("RssAnon"), []
convert_checkpoint(source, directory + "/m", to=to, progress=lambda _: peak.append(mb("RssAnon")))
print(mb("VmHWM") - whole, max(peak) - own)
"""
LARGEST_MB, LIMIT_MB = 4, 64


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """300 MB in tensors of four, of each format, and small ones of the same."""
    directory = tmp_path_factory.mktemp("large")
    for name, count in (("large", 75), ("small", 1)):
        values = {f"w{n}": torch.full((1 << 20,), float(n)) for n in range(count)}
        ts.save_tf_checkpoint(directory / f"{name}.tf", values)
        ts.Saver(values).save(directory / f"{name}.own", write_state=False)
        torch.save(values, directory / f"{name}.pt")
    yield directory
    shutil.rmtree(directory)


@pytest.mark.parametrize(("kind", "to"), [("tf", "safetensors"), ("own", "tf"), ("own", "safetensors"), ("pt", "tf")])
def test_memory_is_bounded_by_the_largest_tensor(kind: str, to: Format, large: Path, tmp_path: Path) -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system does not count a peak anew")
    command = [sys.executable, "-c", PROGRAM, str(large / f"large.{kind}"), to, str(large / f"small.{kind}")]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120)
    shutil.rmtree(tmp_path)
    whole, own = map(float, done.stdout.split())
    assert own < LIMIT_MB + LARGEST_MB
    if kind != "pt":  # which is mapped: the system counts its pages, and takes them back as it likes
        assert whole < LIMIT_MB + LARGEST_MB

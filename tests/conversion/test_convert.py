"""Converting: bit for bit, with nothing lost that is not named, and told before it is done."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import corpus
import pytest
import torch
from conversion.contents import FORMATS, bits, contents, names
from faults.crash_states import snapshot
from safetensors.torch import load_file, save_file

import torchsaver as ts
from torchsaver.conversion.convert import Conversion, convert_checkpoint, read_rules_file
from torchsaver.conversion.plan import Format
from torchsaver.errors import ConversionError, UnsupportedCheckpointError
from torchsaver.inspection.reports import Progress
from torchsaver.variables.mapping.rules_file import parse_rules


def written_rules(path: Path, text: str) -> Any:
    path.write_text(text)
    return read_rules_file(path)


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
    assert done.left_out == ({} if to == "safetensors" else {"epoch": "no tensor"})
    with ts.load_checkpoint(tmp_path / "new") as reader:
        assert reader.aliases == ({"same": "tied"} if to == "safetensors" else {})
        assert reader.metadata == ({"epoch": 1} if to == "safetensors" else None)


def test_state_dict_within_others_comes_out_by_rules(tmp_path: Path) -> None:
    model, rules = torch.nn.Linear(2, 2), '[[rename]]\nscope = "state_dict."\nto = ""\n'
    optimizer = torch.optim.Adam(model.parameters())
    torch.save({"state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}, tmp_path / "m.ckpt")
    drop = '[[rename]]\nscope = "optimizer."\ndrop = true'
    done = convert_checkpoint(tmp_path / "m.ckpt", tmp_path / "new", rules=parse_rules(rules + drop))
    loaded = load_file(tmp_path / "new.safetensors")
    model.load_state_dict(loaded)
    assert done.left_out == {"optimizer": "no tensor"}
    with ts.load_checkpoint(tmp_path / "new") as reader:
        assert (reader.metadata, reader.object_trees) == ({"epoch": 1}, {})


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

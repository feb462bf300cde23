"""What is converted: every value of a source once, unread, and of what cannot be a value, why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import corpus
import pytest
import torch

import torchsaver as ts
from torchsaver.conversion import source as source_module
from torchsaver.conversion.source import Source, opened_source
from torchsaver.errors import CheckpointNotFoundError, CorruptCheckpointError


def saved(path: Path, content: Any) -> str:
    torch.save(content, path)
    return str(path)


def opened(path: str) -> Source:
    """Return a source of torch.save, which needs no open file."""
    with opened_source(path) as found:
        return found


def problems(path: str) -> dict[str, str]:
    return {value.key: value.problem for value in opened(path).values}


# ---- stored checkpoints


def test_tensorflow_checkpoint_gives_its_values_unread_and_names_what_is_none() -> None:
    with opened_source(corpus.prefix("table_iterator_variant")) as found:
        kinds = {value.key: value.dtype for value in found.values}
        assert found.is_tensorflow
    assert set(kinds.values()) >= {"string", "int64"}
    assert found.left_out == {
        "_CHECKPOINTABLE_OBJECT_GRAPH": "the graph of TensorFlow's objects",
        "it/.ATTRIBUTES/ITERATOR_STATE": "a variant, the state of a TensorFlow object",
    }


def test_own_checkpoint_gives_tied_names_and_its_manifest(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    prefix = ts.Saver(model).save(tmp_path / "m", 7, metadata={"loss": 0.5})
    with opened_source(prefix) as found:
        aliases = {value.key: value.aliases for value in found.values}
        values = {value.key: value.read() for value in found.values}
    assert aliases == {"a.bias": (), "a.weight": ("b.weight",), "b.bias": ()}
    assert torch.equal(values["a.weight"], model["a"].weight)
    assert (found.manifest.global_step, found.manifest.metadata, found.is_tensorflow) == (7, {"loss": 0.5}, False)


def test_directory_is_its_newest_checkpoint(tmp_path: Path) -> None:
    saver = ts.Saver({"w": torch.ones(1)})
    for step in (1, 2):
        saver.save(tmp_path / "m", step)
    with opened_source(tmp_path) as found:
        assert found.manifest.global_step == 2


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    for name in ("none", "none.pt", "none.bin.index.json"):
        with pytest.raises(CheckpointNotFoundError, match=name), opened_source(tmp_path / name):
            pass


# ---- files of torch.save


def test_values_keep_the_order_of_the_file(tmp_path: Path) -> None:
    found = opened(saved(tmp_path / "m.pt", {"b": torch.ones(1), "a": torch.ones(2), "epoch": 3}))
    assert [(value.key, value.dtype, value.shape) for value in found.values] == [
        ("b", "float32", (1,)),
        ("a", "float32", (2,)),
    ]
    assert found.left_out == {"epoch": "no tensor"}
    assert not found.is_tensorflow


def test_tensors_that_are_the_same_memory_are_tied_and_views_of_it_are_not(tmp_path: Path) -> None:
    whole = torch.arange(16.0).reshape(4, 4)
    content = {
        "whole": whole,
        "same": whole.detach(),
        "row": whole[0],
        "turned": whole.t(),
        "flat": whole.view(-1),
        "equal": whole.clone(),
    }
    found = opened(saved(tmp_path / "m.pt", content))
    assert {value.key: value.aliases for value in found.values} == {
        "whole": ("same",),
        **dict.fromkeys(["row", "turned", "flat", "equal"], ()),
    }
    for value in found.values:
        assert torch.equal(value.read(), content[value.key]), value.key


def test_empty_and_conjugated_tensors_are_not_tied(tmp_path: Path) -> None:
    z = torch.ones(2, dtype=torch.complex64)
    content = {"e": torch.zeros(0), "f": torch.zeros(0), "z": z, "conj": z.conj()}
    assert [value.aliases for value in opened(saved(tmp_path / "m.pt", content)).values] == [(), (), (), ()]


def test_tensors_without_bytes_to_store_say_why(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    eye = torch.eye(2)
    content = {
        "meta": torch.ones(3, device="meta"),
        "coo": eye.to_sparse(),
        "csr": eye.to_sparse_csr(),
        "quantized": torch.quantize_per_tensor(eye, 0.1, 0, torch.quint8),
        "half": torch.ones((), dtype=torch.complex32),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "good": eye.t(),
    }
    recwarn.clear()
    found = problems(saved(tmp_path / "m.pt", content))
    assert not recwarn.list
    assert found.pop("good") == ""
    assert "meta device and has no values" in found["meta"]
    assert "layout sparse_coo, and only dense" in found["coo"]
    assert "layout sparse_csr, and only dense" in found["csr"]
    assert "has dtype quint8, for which safetensors has no name" in found["quantized"]
    assert "has dtype complex32" in found["half"]
    assert "layout nested" in found["nested"]


def test_tensors_that_come_to_one_name_say_so(tmp_path: Path) -> None:
    content = {"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}, 1: torch.zeros(1), "1": torch.ones(1)}
    found = problems(saved(tmp_path / "m.pt", content))
    assert found.keys() == {"a.b", "1"}
    assert all(problem.startswith("stands twice in it") for problem in found.values())


def test_file_is_verified_once_when_its_first_value_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verified: list[str] = []
    monkeypatch.setattr(source_module, "verify_torch_file", verified.append)
    path = saved(tmp_path / "m.pt", {"a": torch.ones(1), "b": torch.ones(2)})
    found = opened(path)
    assert verified == []
    for value in found.values:
        value.read()
    assert verified == [path]


# ---- shards of torch.save


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """An index as transformers wrote them, and its shards; a tensor that is tied within one."""
    tied = torch.arange(3.0)
    shards = {
        "pytorch_model-00001-of-00002.bin": {"wte": tied, "head": tied.detach()},
        "pytorch_model-00002-of-00002.bin": {"h.0": torch.ones(2), "spare": torch.ones(1), "note": "x"},
    }
    weight_map = {}
    for name, content in shards.items():
        torch.save(content, tmp_path / name)
        weight_map.update({key: name for key in content if key not in ("spare", "note")})
    index = {"metadata": {"total_size": 20}, "weight_map": weight_map}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return tmp_path / "pytorch_model.bin.index.json"


def test_index_of_shards_of_torch_save_is_one_source(sharded: Path) -> None:
    found = opened(str(sharded))
    assert {value.key: (value.aliases, value.read().tolist()) for value in found.values} == {
        "wte": (("head",), [0.0, 1.0, 2.0]),
        "h.0": ((), [1.0, 1.0]),
    }
    assert found.left_out == {
        "spare": "not for 'pytorch_model-00002-of-00002.bin' in the index",
        "note": "no tensor",
    }


def test_shard_that_is_missing_or_lacks_a_key_is_named(sharded: Path) -> None:
    second = sharded.with_name("pytorch_model-00002-of-00002.bin")
    shutil.copy(sharded.with_name("pytorch_model-00001-of-00002.bin"), second)
    with pytest.raises(CorruptCheckpointError, match=r"'h\.0' is not in its shard 'pytorch_model-00002"):
        opened(str(sharded))
    second.unlink()
    with pytest.raises(CorruptCheckpointError, match=r"its shard 'pytorch_model-00002-of-00002\.bin' is missing"):
        opened(str(sharded))


def test_shard_outside_the_directory_is_refused(sharded: Path) -> None:
    sharded.write_text(sharded.read_text().replace("pytorch_model-00002", "../pytorch_model-00002"))
    with pytest.raises(CorruptCheckpointError, match="a shard is a file beside its index"):
        opened(str(sharded))

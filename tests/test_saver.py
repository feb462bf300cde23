"""Saver: what is saved comes back, bit for bit, or not at all."""

import logging
import math
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import nn

import torchsaver as ts
from torchsaver.formats.tensor_bytes import TORCH_DTYPES


def bits(tensor: torch.Tensor) -> bytes:
    """Return a tensor's values in row-major order, as bytes."""
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().tobytes()


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor of random bits: nan, inf and -0.0 among them."""
    generator = torch.Generator().manual_seed(0)
    high = 2 if dtype == torch.bool else 256
    data = torch.randint(high, (math.prod(shape) * dtype.itemsize,), generator=generator, dtype=torch.uint8)
    return data.view(dtype).reshape(shape)


def zeroed_like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros(tensor.nbytes, dtype=torch.uint8).view(tensor.dtype).reshape(tensor.shape)


# ---- every kind of tensor


@pytest.mark.parametrize("dtype", [*TORCH_DTYPES.values(), torch.complex128], ids=str)
@pytest.mark.parametrize("shape", [(3, 4), (1,), (0, 5)], ids=str)
def test_every_dtype_comes_back_bit_exact(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    value = random_tensor(dtype, shape)
    target = zeroed_like(value)
    prefix = ts.Saver({"x": value}).save(tmp_path / "m")
    ts.Saver({"x": target}).restore(prefix)
    assert target.dtype == dtype
    assert bits(target) == bits(value)
    assert bits(ts.load_variable(prefix, "x")) == bits(value)
    load_file(f"{prefix}.safetensors")


VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "transposed": lambda t: t.transpose(0, 1),
    "sliced": lambda t: t[1:, ::2],
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "flipped_dims": lambda t: t.permute(3, 2, 1, 0),
    "scalar": lambda t: t[0, 0, 0, 0],
    "viewed": lambda t: t.view(-1),
    "row": lambda t: t[1],
    "expanded": lambda t: t[:, :1].expand(-1, 5, -1, -1),
    "conj": lambda t: t.conj(),
    "conj_transposed": lambda t: t.conj().transpose(0, 1),
    "neg": lambda t: t.conj().imag,
}


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_is_saved_bit_exact_and_restored_into_its_own_kind(view: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    value = VIEWS[view](torch.randn(3, 4, 2, 5, dtype=torch.complex64, generator=generator))
    prefix = ts.Saver({"x": value}).save(tmp_path / "m")
    assert torch.equal(load_file(f"{prefix}.safetensors")["x"], value.resolve_conj().resolve_neg())
    if view != "expanded":
        target = VIEWS[view](torch.zeros(3, 4, 2, 5, dtype=torch.complex64))
        strides = target.stride()
        ts.Saver({"x": target}).restore(prefix)
        assert torch.equal(target, value)
        assert target.stride() == strides


def test_restore_into_expanded_tensor_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    prefix = ts.Saver({"x": torch.ones(3, 2)}).save(tmp_path / "m")
    base = torch.zeros(1, 2)
    with pytest.raises(ts.MismatchError, match="expanded"):
        ts.Saver({"x": base.expand(3, 2)}).restore(prefix)
    assert base.tolist() == [[0.0, 0.0]]


UNSTORABLE: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "meta": (lambda: torch.empty(2, device="meta"), "meta device"),
    "sparse": (lambda: torch.eye(2).to_sparse(), "sparse_coo"),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8), "qint8"),
    "lazy": (lambda: nn.LazyLinear(2).weight, "lazy"),
}


@pytest.mark.parametrize("kind", UNSTORABLE)
@pytest.mark.filterwarnings("ignore")  # torch warns that quantized tensors and lazy modules may change
def test_tensors_without_storable_values_are_refused_together_before_a_byte_is_written(
    kind: str, tmp_path: Path
) -> None:
    make, reason = UNSTORABLE[kind]
    with pytest.raises(ts.VarListError, match=reason) as caught:
        ts.Saver({"good": torch.ones(1), "bad": make(), "worse": make()}).save(tmp_path / "new" / "m")
    assert [problem.split()[0] for problem in caught.value.problems] == ["'bad'", "'worse'"]
    assert os.listdir(tmp_path) == []


def test_meta_module_is_restored_once_it_has_memory(tmp_path: Path) -> None:
    source = nn.Linear(2, 2)
    prefix = ts.Saver(source).save(tmp_path / "m")
    model = nn.Linear(2, 2, device="meta")
    saver = ts.Saver(model)
    with pytest.raises(ts.MismatchError, match="to_empty"):
        saver.restore(prefix)
    model.to_empty(device="cpu")
    saver.restore(prefix)
    assert torch.equal(model.weight, source.weight)


def test_tensor_larger_than_the_window_comes_back_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchsaver.formats.staging.WINDOW_BYTES", 40)
    monkeypatch.setattr("torchsaver.formats.chunks.CHUNK_BYTES", 24)
    monkeypatch.setattr("torchsaver.formats.safetensors_writer.CHUNK_BYTES", 24)
    value = torch.arange(7 * 5 * 3.0).reshape(7, 5, 3)
    for name, view in {"plain": value, "turned": value.transpose(0, 2), "wide": value.reshape(1, -1).t().t()}.items():
        prefix = ts.Saver({"x": view}).save(tmp_path / name)
        target = torch.zeros(tuple(reversed(view.shape))).permute(*reversed(range(view.dim())))
        ts.Saver({"x": target}).restore(prefix)
        assert torch.equal(target, view)


def test_key_metadata_is_refused_because_safetensors_writes_an_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(ts.VarListError, match="__metadata__"):
        ts.Saver({"__metadata__": torch.ones(1)})


# ---- slots are looked up at each save and restore


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)


def test_module_doubled_after_the_saver_was_built_is_saved_as_it_is_now(tmp_path: Path) -> None:
    model = Net()
    saver = ts.Saver(model)
    model.double()
    model.norm.running_mean.fill_(3.0)
    stored = load_file(f"{saver.save(tmp_path / 'm')}.safetensors")
    assert {key: t.dtype for key, t in stored.items() if t.is_floating_point()}["norm.running_mean"] == torch.float64
    assert stored["norm.running_mean"].tolist() == [3.0, 3.0]


def test_parameters_replaced_by_assign_are_saved_and_restored(tmp_path: Path) -> None:
    model = Net()
    saver = ts.Saver(model)
    model.load_state_dict({key: torch.full_like(value, 5) for key, value in model.state_dict().items()}, assign=True)
    prefix = saver.save(tmp_path / "m")
    assert load_file(f"{prefix}.safetensors")["fc.weight"].unique().tolist() == [5.0]
    model.load_state_dict({key: torch.zeros_like(value) for key, value in model.state_dict().items()}, assign=True)
    saver.restore(prefix)
    assert model.fc.weight.unique().tolist() == [5.0]


def test_list_with_names_from_follows_the_module_when_buffers_are_replaced(tmp_path: Path) -> None:
    model = Net()
    saver = ts.Saver([model.norm.running_mean, model.fc.bias], names_from=model)
    model.double()
    stored = load_file(f"{saver.save(tmp_path / 'm')}.safetensors")
    assert {key: value.dtype for key, value in stored.items()} == {
        "norm.running_mean": torch.float64,
        "fc.bias": torch.float64,
    }


# ---- save


@pytest.mark.parametrize(
    ("step", "name"),
    [(7, "m-7"), (0, "m-0"), (np.int32(7), "m-7"), (np.uint8(7), "m-7"), (torch.tensor(7), "m-7"), (None, "m")],
    ids=repr,
)
def test_step_goes_into_the_name_and_the_metadata(step: Any, name: str, tmp_path: Path) -> None:
    prefix = ts.Saver({"x": torch.ones(1)}).save(tmp_path / "m", step)
    assert prefix == str(tmp_path / name)
    with ts.load_checkpoint(prefix) as reader:
        assert reader.global_step == (None if step is None else int(step))


@pytest.mark.parametrize("step", [1.5, "7", True, [1], torch.tensor([7]), torch.tensor(True), np.float32(1)], ids=repr)
def test_step_that_is_no_integer_is_a_type_error_and_writes_nothing(step: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="global_step"):
        ts.Saver({"x": torch.ones(1)}).save(tmp_path / "m", step)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("metadata", [{"a": [1, 2.5, None, True, "é"]}, [], "text", 0, False, {}], ids=repr)
def test_any_json_value_comes_back_as_metadata(metadata: Any, tmp_path: Path) -> None:
    saver = ts.Saver({"x": torch.ones(1)})
    assert saver.restore(saver.save(tmp_path / "m", metadata=metadata)).metadata == metadata


@pytest.mark.parametrize("metadata", [{"loss": math.nan}, (1, 2), {1: 2}, {"x": object}, "\ud800"], ids=repr)
def test_metadata_that_json_would_change_is_refused_before_writing(metadata: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="metadata"):
        ts.Saver({"x": torch.ones(1)}).save(tmp_path / "m", metadata=metadata)
    assert os.listdir(tmp_path) == []


def test_same_content_at_the_same_clock_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    values = {key: torch.randn(3) for key in "bca"}
    one = ts.Saver(values).save(tmp_path / "one", 3, metadata={"k": 1}, write_state=False)
    two = ts.Saver(dict(sorted(values.items()))).save(tmp_path / "two", 3, metadata={"k": 1}, write_state=False)
    assert Path(f"{one}.safetensors").read_bytes() == Path(f"{two}.safetensors").read_bytes()


def test_missing_directories_are_made_at_any_depth(tmp_path: Path) -> None:
    prefix = ts.Saver({"x": torch.ones(1)}).save(tmp_path / "a" / "b" / "c" / "m")
    assert ts.latest_checkpoint(tmp_path / "a" / "b" / "c") == prefix


@pytest.mark.parametrize(
    ("path", "latest_filename"),
    [
        ("checkpoint", None),
        ("m", "m"),
        ("m", "m.safetensors"),
        ("m", "m.safetensors.index.json"),
        ("dir/", None),
        ("", None),
    ],
)
def test_name_that_collides_or_is_empty_is_refused_before_writing(
    path: str, latest_filename: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saver = ts.Saver({"x": torch.ones(1)})
    with pytest.raises(ValueError, match=r"save_path|collide"):
        saver.save(path, latest_filename=latest_filename)
    assert os.listdir(tmp_path) == []
    assert saver.last_checkpoints == []


def test_directory_in_the_place_of_the_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").mkdir()
    with pytest.raises(IsADirectoryError, match=r"m\.safetensors"):
        ts.Saver({"x": torch.ones(1)}).save(tmp_path / "m")
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_name_too_long_for_the_disk_is_an_error_before_writing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too long"):
        ts.Saver({"x": torch.ones(1)}).save(tmp_path / ("m" * 250))
    assert os.listdir(tmp_path) == []


def test_shards_are_written_in_the_hugging_face_layout_and_restored(tmp_path: Path) -> None:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    saver = ts.Saver(model, max_shard_bytes=600)
    prefix = saver.save(tmp_path / "m", metadata={"k": 1})
    shards = sorted(name for name in os.listdir(tmp_path) if name.endswith(".safetensors"))
    assert shards == [f"m-0000{n}-of-00002.safetensors" for n in (1, 2)]
    stored = {key: value for name in shards for key, value in load_file(tmp_path / name).items()}
    assert all(torch.equal(stored[key], value) for key, value in model.state_dict().items())
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    report = saver.restore(prefix)
    assert all(torch.equal(stored[key], value) for key, value in model.state_dict().items())
    assert (report.metadata, report.bytes) == ({"k": 1}, 4 * 8 * 9 * 4)


# ---- restore


def test_swapped_and_renamed_values_come_from_the_keys_of_the_dict(tmp_path: Path) -> None:
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    prefix = ts.Saver({"a": one, "b": two}).save(tmp_path / "m")
    ts.Saver({"a": two, "b": one}).restore(prefix)
    assert (one.item(), two.item()) == (2.0, 1.0)


def test_mismatch_lists_everything_and_changes_nothing(tmp_path: Path) -> None:
    prefix = ts.Saver({"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(2)}).save(tmp_path / "m")
    targets = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(2, dtype=torch.float64), "dd": torch.zeros(1)}
    with pytest.raises(ts.MismatchError) as caught:
        ts.Saver(targets).restore(prefix)
    error = caught.value
    assert error.missing == ("dd",)
    assert error.shapes == (("b", [2], [3]),)
    assert error.dtypes == (("c", "float32", "float64"),)
    assert all(not target.any() for target in targets.values())


def test_strict_false_skips_missing_keys_and_says_so(tmp_path: Path) -> None:
    prefix = ts.Saver({"a": torch.ones(2), "old": torch.ones(1)}).save(tmp_path / "m", 4)
    a, new = torch.zeros(2), torch.full((1,), 7.0)
    report = ts.Saver({"a": a, "new": new}).restore(prefix, strict=False)
    assert (report.restored, report.missing, report.unused) == (("a",), ("new",), ("old",))
    assert (a.tolist(), new.tolist()) == ([1.0, 1.0], [7.0])
    assert "1 restored" in repr(report)
    assert "missing: new" in repr(report)
    assert "step 4" in repr(report)


def test_reshape_takes_the_same_elements_in_another_shape(tmp_path: Path) -> None:
    prefix = ts.Saver({"a": torch.arange(6.0)}).save(tmp_path / "m")
    target = torch.zeros(2, 3).t()
    ts.Saver({"a": target}, reshape=True).restore(prefix)
    assert target.tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    with pytest.raises(ts.MismatchError, match="reshape=True"):
        ts.Saver({"a": target}).restore(prefix)


def test_parameters_stay_the_same_objects_for_optimizers_and_views(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    prefix = ts.Saver(model).save(tmp_path / "m")
    view, address = model.weight.detach()[0], model.weight.data_ptr()
    nn.init.zeros_(model.weight)
    ts.Saver(model).restore(prefix)
    assert model.weight.data_ptr() == address
    assert view.any()
    assert model.weight.requires_grad


def test_graph_built_before_a_restore_refuses_to_go_backward(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.ones(2))
    saver = ts.Saver({"w": weight})
    prefix = saver.save(tmp_path / "m")
    loss = (weight * weight).sum()
    saver.restore(prefix)
    with pytest.raises(RuntimeError, match="inplace operation"):
        loss.backward()


def test_tied_weights_are_stored_once_and_restored_by_either_name(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight

    model = Tied()
    prefix = ts.Saver(model).save(tmp_path / "m")
    assert list(load_file(f"{prefix}.safetensors")) == ["embed.weight"]
    untied = torch.zeros(5, 3)
    report = ts.Saver({"head.weight": untied}).restore(prefix)
    assert torch.equal(untied, model.embed.weight)
    assert report.restored == ("head.weight",)
    assert ts.Saver(Tied()).restore(prefix).aliases == {"head.weight": "embed.weight"}


def test_tied_model_refuses_a_checkpoint_with_two_different_values(tmp_path: Path) -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    prefix = ts.Saver(model).save(tmp_path / "m")
    same = ts.Saver({"a.weight": torch.ones(2, 2), "b.weight": torch.ones(2, 2)}).save(tmp_path / "same")
    model["b"].weight = model["a"].weight
    before = model["a"].weight.clone()
    with pytest.raises(ts.MismatchError, match="tied"):
        ts.Saver(model).restore(prefix)
    assert torch.equal(model["a"].weight, before)
    ts.Saver(model).restore(same)
    assert model["a"].weight.tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_files_of_safetensors_itself_are_restored(tmp_path: Path) -> None:
    source = nn.Linear(3, 2)
    save_file(source.state_dict(), tmp_path / "plain.safetensors")
    tied = nn.ModuleDict({"a": source, "b": nn.Linear(3, 2, bias=False)})
    tied["b"].weight = source.weight
    save_model(tied, str(tmp_path / "tied.safetensors"))
    for path in (tmp_path / "plain", tmp_path / "plain.safetensors"):
        target = nn.Linear(3, 2)
        ts.Saver(target).restore(path)
        assert torch.equal(target.weight, source.weight)
    b = torch.zeros(2, 3)
    ts.Saver({"b.weight": b}).restore(tmp_path / "tied")
    assert torch.equal(b, source.weight)


def test_optimizer_scheduler_and_model_come_back_and_training_goes_on_alike(tmp_path: Path) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2)

    def train(parts: tuple[nn.Module, torch.optim.Optimizer, Any], steps: int) -> None:
        for _ in range(steps):
            parts[1].zero_grad()
            parts[0](torch.ones(2, 4)).square().mean().backward()
            parts[1].step()
            parts[2].step()

    one, two = build(), build()
    names = ("model", "optimizer", "scheduler")
    train(one, 3)
    prefix = ts.Saver(dict(zip(names, one, strict=True))).save(tmp_path / "m", 3)
    report = ts.Saver(dict(zip(names, two, strict=True))).restore(prefix)
    assert set(report.restored) >= {"model.0.weight", "optimizer", "scheduler"}
    train(one, 3)
    train(two, 3)
    assert all(torch.equal(a, b) for a, b in zip(one[0].parameters(), two[0].parameters(), strict=True))
    assert one[2].state_dict() == two[2].state_dict()


def _refuse(*_: Any) -> None:
    raise ValueError("no")


def test_object_that_refuses_its_state_leaves_everything_as_it_was(tmp_path: Path) -> None:
    weight, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    prefix = ts.Saver({"w": weight, "o": optimizer}).save(tmp_path / "m")
    two_groups = torch.optim.SGD([{"params": [weight]}, {"params": [other]}], lr=0.5)
    two_groups.register_load_state_dict_pre_hook(_refuse)
    with torch.no_grad():
        weight.fill_(9.0)
    saver = ts.Saver({"w": weight, "o": two_groups, "v": other})
    with pytest.raises(ts.MismatchError, match=r"o: load_state_dict\(\) raised ValueError: no"):
        saver.restore(prefix, strict=False)
    assert weight.tolist() == [9.0, 9.0]
    assert two_groups.param_groups[0]["lr"] == 0.5


# ---- damaged files


def test_flipped_bit_is_found_before_anything_changes(tmp_path: Path) -> None:
    values = {"a": torch.arange(4.0), "b": torch.arange(4.0) + 9}
    prefix = ts.Saver(values).save(tmp_path / "m")
    path = Path(f"{prefix}.safetensors")
    whole = path.read_bytes()
    targets = {key: torch.zeros(4) for key in values}
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        try:
            ts.Saver(targets).restore(prefix)
        except ts.TorchSaverError:
            assert not any(target.any() for target in targets.values())
        else:  # a bit without a meaning: what came back is right
            assert all(torch.equal(targets[key], values[key]) for key in values)
            for target in targets.values():
                target.zero_()


def test_file_cut_at_any_byte_is_refused_before_anything_changes(tmp_path: Path) -> None:
    prefix = ts.Saver({"a": torch.arange(4.0)}).save(tmp_path / "m")
    path = Path(f"{prefix}.safetensors")
    whole = path.read_bytes()
    target = torch.zeros(4)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ts.CorruptCheckpointError, match=r"m\.safetensors"):
            ts.Saver({"a": target}).restore(prefix, verify=False)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ts.CorruptCheckpointError):
        ts.Saver({"a": target}).restore(prefix)
    assert not target.any()


def test_verify_false_restores_without_checksums(tmp_path: Path) -> None:
    prefix = ts.Saver({"a": torch.zeros(4)}).save(tmp_path / "m")
    path = Path(f"{prefix}.safetensors")
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\x80?")
    target = torch.zeros(4)
    with pytest.raises(ts.CorruptCheckpointError, match="checksum"):
        ts.Saver({"a": target}).restore(prefix)
    ts.Saver({"a": target}).restore(prefix, verify=False)
    assert target.tolist() == [0.0, 0.0, 0.0, 1.0]


def test_shards_of_two_saves_are_never_taken_for_one_checkpoint(tmp_path: Path) -> None:
    for name, fill in (("one", 1.0), ("two", 2.0)):
        values = {"a": torch.full((8,), fill), "b": torch.full((8,), fill)}
        ts.Saver(values, max_shard_bytes=32).save(tmp_path / name / "m")
    shutil.copy(tmp_path / "one" / "m-00001-of-00002.safetensors", tmp_path / "two")
    with pytest.raises(ts.CorruptCheckpointError, match="another save"):
        ts.load_checkpoint(tmp_path / "two" / "m")
    os.remove(tmp_path / "two" / "m-00001-of-00002.safetensors")
    with pytest.raises(ts.CorruptCheckpointError, match="missing"):
        ts.load_checkpoint(tmp_path / "two" / "m")


@pytest.mark.parametrize("path", ["nothing", "", "no/such/dir/m"])
def test_restore_of_nothing_is_a_not_found_error_that_names_it(path: str, tmp_path: Path) -> None:
    with pytest.raises(ts.CheckpointNotFoundError, match=path or "''"):
        ts.Saver({"x": torch.ones(1)}).restore(os.path.join(tmp_path, path) if path else "")


# ---- which checkpoints stay


def test_old_checkpoint_that_cannot_be_removed_is_logged_and_removed_by_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    saver = ts.Saver({"x": torch.ones(1)}, max_to_keep=1)
    saver.save(tmp_path / "m", 1)

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, "torchsaver"):
        patched.setattr("torchsaver.storage.disk.os.unlink", refuse)
        saver.save(tmp_path / "m", 2)
    assert "m-1" in caplog.text
    assert ts.checkpoint_exists(tmp_path / "m-1")
    saver.save(tmp_path / "m", 3)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", "m-3.safetensors"]


def test_two_spellings_of_a_path_are_one_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    saver = ts.Saver({"x": torch.ones(1)}, max_to_keep=1)
    for spelling in ("m", "./m", str(tmp_path / "m"), "link/m"):
        saver.save(spelling)
        assert ts.checkpoint_exists("m")
    assert saver.last_checkpoints == ["link/m"]


def test_checkpoints_are_removed_where_they_were_saved_after_the_working_directory_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saver = ts.Saver({"x": torch.ones(1)}, max_to_keep=1)
    saver.save("m", 1)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    shutil.copy(tmp_path / "m-1.safetensors", tmp_path / "elsewhere")
    saver.save("m", 2)
    assert not (tmp_path / "m-1.safetensors").exists()
    assert (tmp_path / "elsewhere" / "m-1.safetensors").exists()


def test_copy_of_a_directory_never_points_at_the_original(tmp_path: Path) -> None:
    saver = ts.Saver({"x": torch.ones(1)})
    saver.save(tmp_path / "run" / "m", 1)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert ts.latest_checkpoint(tmp_path / "copy") == str(tmp_path / "copy" / "m-1")


def test_settings_make_an_equal_saver() -> None:
    saver = ts.Saver(
        {"x": torch.ones(1)}, max_to_keep=3, keep_checkpoint_every_n_hours=2, reshape=True, max_shard_bytes=9
    )
    assert ts.Saver({"y": torch.ones(1)}, **saver.settings).settings == saver.settings
    assert (
        ts.Saver({"y": torch.ones(1)}, keep_checkpoint_every_n_hours=None).settings["keep_checkpoint_every_n_hours"]
        is None
    )


# ---- nothing given


def test_saver_without_var_list_takes_the_collection(tmp_path: Path) -> None:
    with ts.Collection():
        v1 = ts.Variable(1.0, name="v1", trainable=False)
        again = ts.Variable([2.0], name="v1")
        model = ts.track(nn.Linear(2, 1), "net")
        prefix = ts.Saver().save(tmp_path / "m")
        assert ts.list_variables(prefix) == [("net.bias", [1]), ("net.weight", [1, 2]), ("v1", []), ("v1_1", [1])]
        assert (v1.requires_grad, again.requires_grad, isinstance(model, nn.Linear)) == (False, True, True)


def test_saver_of_nothing_is_an_error_unless_allowed(tmp_path: Path) -> None:
    with ts.Collection():
        with pytest.raises(ts.VarListError, match="nothing to save"):
            ts.Saver()
        saver = ts.Saver(allow_empty=True)
        assert saver.save(tmp_path / "m") is None
        assert saver.restore(tmp_path / "nowhere").restored == ()
    assert os.listdir(tmp_path) == []


def test_deferred_saver_takes_what_is_there_at_build(tmp_path: Path) -> None:
    with ts.Collection():
        saver = ts.Saver(defer_build=True)
        with pytest.raises(RuntimeError, match=r"build\(\)"):
            saver.save(tmp_path / "m")
        with pytest.raises(RuntimeError, match=r"build\(\)"):
            saver.restore(tmp_path / "m")
        late = ts.Variable(1.0, name="late")
        saver.build()
        assert ts.list_variables(saver.save(tmp_path / "m")) == [("late", [])]
        del late


# ---- the order of a save


def test_order_of_a_save_is_data_then_state_file_then_removal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = ts.Saver({"x": torch.ones(1)}, max_to_keep=1)
    saver.save(tmp_path / "m", 1)
    done: list[str] = []
    fsync, replace, unlink = os.fsync, os.replace, os.unlink

    def synced(fd: int) -> None:
        done.append("sync directory" if os.path.isdir(f"/proc/self/fd/{fd}") else "sync file")
        fsync(fd)

    def replaced(old: str, new: str) -> None:
        done.append(f"name {os.path.basename(new)}")
        replace(old, new)

    def unlinked(path: str) -> None:
        done.append(f"remove {os.path.basename(path)}")
        unlink(path)

    for name, function in (("fsync", synced), ("replace", replaced), ("unlink", unlinked)):
        monkeypatch.setattr(f"torchsaver.storage.disk.os.{name}", function)
    saver.save(tmp_path / "m", 2)
    assert done == [
        *("sync file", "name m-2.safetensors", "sync directory"),
        *("sync file", "name checkpoint", "sync directory"),
        "remove m-1.safetensors",
    ]


def test_index_of_shards_is_named_after_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[str] = []

    def noting(function: Callable[[str, str], None]) -> Callable[[str, str], None]:
        def noted(old: str, new: str) -> None:
            named.append(os.path.basename(new))
            function(old, new)

        return noted

    for name in ("link", "replace"):
        monkeypatch.setattr(f"torchsaver.storage.disk.os.{name}", noting(getattr(os, name)))
    ts.Saver({"a": torch.ones(4), "b": torch.ones(4)}, max_shard_bytes=16).save(tmp_path / "m")
    shards = ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"]
    assert named == [*shards, "m.safetensors.index.json", "checkpoint"]


def test_restore_keeps_no_mapping_and_no_file_open(tmp_path: Path) -> None:
    saver = ts.Saver({"x": torch.ones(4096)})
    prefix = saver.save(tmp_path / "m")
    before = len(os.listdir("/proc/self/fd"))
    saver.restore(prefix)
    assert len(os.listdir("/proc/self/fd")) == before
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


# ---- a disk that refuses


def test_directory_that_may_not_be_written_is_a_permission_error_that_names_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = ts.Saver({"x": torch.ones(1)})
    first = saver.save(tmp_path / "m", 1)
    os_open = os.open

    def refused(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            raise PermissionError(13, "Permission denied", path)
        return os_open(path, flags, mode)

    with monkeypatch.context() as patched:
        patched.setattr("torchsaver.storage.disk.os.open", refused)
        with pytest.raises(PermissionError, match=r"m-2\.safetensors"):
            saver.save(tmp_path / "m", 2)
    assert (saver.last_checkpoints, ts.latest_checkpoint(tmp_path)) == ([first], first)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_directory_is_a_permission_error_and_can_be_restored_from(tmp_path: Path) -> None:
    saver = ts.Saver({"x": torch.ones(1)})
    prefix = saver.save(tmp_path / "m", 1)
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(PermissionError):
            saver.save(tmp_path / "m", 2)
        saver.restore(prefix)
    finally:
        tmp_path.chmod(0o755)


def test_full_disk_is_an_error_with_the_remedy_and_loses_nothing(tmp_path: Path) -> None:
    """A real file system of 1 MB, where one may be mounted."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        saver = ts.Saver({"x": torch.ones(100_000)}, max_to_keep=5)
        saved = [saver.save(tmp_path / "m", 1), saver.save(tmp_path / "m", 2)]
        with pytest.raises(OSError, match="free space and save again") as caught:
            saver.save(tmp_path / "m", 3)
        assert caught.value.filename == str(tmp_path / "m-3.safetensors")
        assert saver.last_checkpoints == saved
        assert ts.latest_checkpoint(tmp_path) == saved[-1]
        assert sorted(os.listdir(tmp_path)) == ["checkpoint", "m-1.safetensors", "m-2.safetensors"]
        assert all(ts.load_variable(prefix, "x").sum() == 100_000 for prefix in saved)
        ts.remove_checkpoint(saved[0])
        assert saver.save(tmp_path / "m", 3) == ts.latest_checkpoint(tmp_path)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# ---- other devices


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("turned", [False, True])
def test_values_on_a_gpu_come_back_on_the_gpu(turned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchsaver.formats.staging.WINDOW_BYTES", 1 << 10)
    value = torch.randn(64, 33, device="cuda")
    value = value.t() if turned else value
    target = torch.zeros_like(value)
    ts.Saver({"x": target}).restore(ts.Saver({"x": value}).save(tmp_path / "m"))
    assert torch.equal(target, value)
    assert (target.device, target.stride()) == (value.device, value.stride())

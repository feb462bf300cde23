"""Files of torch.save: tensors are found wherever they hang, nothing else is made, and no damage becomes a value."""

from __future__ import annotations

import collections
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from torchsaver.errors import CorruptCheckpointError, UnsupportedCheckpointError
from torchsaver.formats import torch_file
from torchsaver.formats.torch_file import is_torch_file, read_torch_file, verify_torch_file

STATE = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.ones(2), "steps": torch.tensor(7)}


class Setting:
    """What no reader knows: made, it would leave a trace."""

    made = 0

    def __setstate__(self, state: Any) -> None:
        type(self).made += 1


def saved(path: Path, content: Any, **options: Any) -> str:
    torch.save(content, path, **options)
    return str(path)


def equal(found: list[tuple[str, torch.Tensor]], wanted: dict[str, torch.Tensor]) -> bool:
    same = [key for key, _ in found] == list(wanted)
    return same and all(torch.equal(tensor, wanted[key]) for key, tensor in found)


# ---- what is one


@pytest.mark.parametrize("name", ["m.pt", "m.pth", "pytorch_model.bin", "epoch=3.ckpt", "m"])
@pytest.mark.parametrize("is_zip", [True, False])
def test_file_of_torch_save_is_known_by_its_first_bytes(name: str, *, is_zip: bool, tmp_path: Path) -> None:
    path = saved(tmp_path / name, STATE, _use_new_zipfile_serialization=is_zip)
    assert is_torch_file(path)
    assert equal(read_torch_file(path).tensors, STATE)


def test_damaged_file_is_known_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(b"")
    (tmp_path / "m.safetensors").write_bytes(b"PK")
    assert is_torch_file(str(tmp_path / "m.pt"))
    assert not is_torch_file(str(tmp_path / "m.safetensors"))
    with pytest.raises(CorruptCheckpointError, match="torch cannot read it: EOFError"):
        read_torch_file(str(tmp_path / "m.pt"))


def test_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.pt")
    with pytest.raises(CorruptCheckpointError, match="no regular file"):
        is_torch_file(str(tmp_path / "m.pt"))


# ---- what is in it


def test_tensors_are_named_by_the_keys_and_numbers_that_lead_to_them(tmp_path: Path) -> None:
    one = torch.ones(1)
    content = {
        "model": collections.OrderedDict(fc=one),
        0: one,
        (1, "x"): one,
        "": {"inner": one},
        "list": [one, (one, {"deep": one})],
        "epoch": 3,
    }
    found = read_torch_file(saved(tmp_path / "m.pt", content))
    names = ["model.fc", "0", "(1, 'x')", "inner", "list.0", "list.1.0", "list.1.1.deep"]
    assert [name for name, _ in found.tensors] == names
    assert found.others == ["epoch"]


def test_what_holds_no_tensor_is_named_once_and_not_for_each_number_in_it(tmp_path: Path) -> None:
    groups = [{"lr": 0.1, "params": list(range(500))}]
    content = {"model": STATE, "optimizer": {"state": {0: {"step": torch.ones(1), "n": 1}}, "param_groups": groups}}
    found = read_torch_file(saved(tmp_path / "m.pt", {**content, "args": {"lr": 0.1}, "none": None, "empty": {}}))
    assert found.others == ["optimizer.state.0.n", "optimizer.param_groups", "args", "none", "empty"]


def test_single_tensor_has_a_name(tmp_path: Path) -> None:
    assert equal(read_torch_file(saved(tmp_path / "m.pt", torch.ones(3))).tensors, {"tensor": torch.ones(3)})


def test_two_tensors_that_come_to_one_path_are_both_there(tmp_path: Path) -> None:
    content = {"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}, 1: torch.zeros(1), "1": torch.ones(1)}
    found = read_torch_file(saved(tmp_path / "m.pt", content))
    assert [name for name, _ in found.tensors] == ["a.b", "a.b", "1", "1"]


def test_parameter_comes_as_a_plain_tensor_without_gradient(tmp_path: Path) -> None:
    ((_, tensor),) = read_torch_file(saved(tmp_path / "m.pt", {"w": torch.nn.Parameter(torch.ones(2))})).tensors
    assert type(tensor) is torch.Tensor
    assert not tensor.requires_grad


def test_content_that_holds_itself_or_grows_without_end_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cycle: dict[str, Any] = {"w": torch.ones(1)}
    cycle["again"] = cycle
    found = read_torch_file(saved(tmp_path / "cycle.pt", cycle))
    assert ([name for name, _ in found.tensors], found.others) == (["w"], ["again"])
    bomb: list[Any] = [torch.ones(1)]
    for _ in range(60):
        bomb = [bomb] * 10
    path = saved(tmp_path / "bomb.pt", bomb)
    monkeypatch.setattr(torch_file, "_MOST_VALUES", 10_000)
    with pytest.raises(UnsupportedCheckpointError, match="more than 10,000 values"):
        read_torch_file(path)


def test_content_nested_deep_is_no_recursion_error(tmp_path: Path) -> None:
    deep: list[Any] = [torch.ones(1)]
    for _ in range(300):  # torch.save itself goes no deeper
        deep = [deep]
    found = read_torch_file(saved(tmp_path / "m.pt", deep))
    assert not found.tensors
    assert len(found.others) == 1


# ---- what it must not be


@pytest.mark.parametrize("is_zip", [True, False])
def test_class_that_was_refused_is_named_with_the_remedy_and_not_made(*, is_zip: bool, tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", {"w": torch.ones(1), "x": Setting()}, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(UnsupportedCheckpointError) as raised:
        read_torch_file(path)
    assert f"it holds {Setting.__module__}.Setting, and only tensors" in raised.value.feature
    assert "weights_only=False, and torch.save() its state_dict()" in raised.value.feature
    assert "\n" not in str(raised.value)
    assert Setting.made == 0


def test_whole_module_names_its_class(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", torch.nn.Linear(2, 2))
    with pytest.raises(UnsupportedCheckpointError, match=r"it holds torch\.nn\.modules\.linear\.Linear, and only"):
        read_torch_file(path)


def test_pickle_protocol_that_torch_does_not_read_safely_is_told(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", STATE, pickle_protocol=4)
    with pytest.raises(UnsupportedCheckpointError, match=r"such a pickle safely \(Unsupported operand 149\); where"):
        read_torch_file(path)


def test_pickle_protocol_3_is_read_without_a_warning(tmp_path: Path) -> None:
    assert equal(read_torch_file(saved(tmp_path / "m.pt", STATE, pickle_protocol=3)).tensors, STATE)


def _rewritten(path: str, other: str, compression: int, drop: str = "", add: str = "") -> str:
    """Write an archive again, without a record or with another one."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w", compression) as new:
        for info in old.infolist():
            if not (drop and info.filename.endswith(drop)):
                new.writestr(info.filename, old.read(info))
        if add:
            new.writestr(add, b"")
    return other


def test_torchscript_program_and_other_archives_are_told_apart(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", STATE)
    script = _rewritten(path, str(tmp_path / "script.pt"), zipfile.ZIP_STORED, add="m/constants.pkl")
    other = _rewritten(path, str(tmp_path / "other.pt"), zipfile.ZIP_STORED, drop="data.pkl")
    with pytest.raises(UnsupportedCheckpointError, match="it is a TorchScript program"):
        read_torch_file(script)
    with pytest.raises(UnsupportedCheckpointError, match="a zip archive, and none that"):
        read_torch_file(other)


def test_compressed_archive_is_read(tmp_path: Path) -> None:
    path = _rewritten(saved(tmp_path / "m.pt", STATE), str(tmp_path / "c.pt"), zipfile.ZIP_DEFLATED)
    assert equal(read_torch_file(path).tensors, STATE)
    verify_torch_file(path)


def test_values_of_an_archive_are_mapped_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "m.pt", STATE)
    loaded: list[bool] = []
    load = torch.load

    def noting(*args: Any, **options: Any) -> Any:
        loaded.append(options["mmap"])
        assert options["weights_only"] is True
        return load(*args, **options)

    monkeypatch.setattr(torch, "load", noting)
    read_torch_file(path)
    read_torch_file(saved(tmp_path / "old.pt", STATE, _use_new_zipfile_serialization=False))
    assert loaded == [True, False]


# ---- damage


@pytest.mark.parametrize("is_zip", [True, False])
def test_file_cut_anywhere_is_a_documented_error(*, is_zip: bool, tmp_path: Path) -> None:
    whole = Path(saved(tmp_path / "m.pt", STATE, _use_new_zipfile_serialization=is_zip)).read_bytes()
    path = tmp_path / "cut.pt"
    for length in range(0, len(whole), 3):
        path.write_bytes(whole[:length])
        with pytest.raises((CorruptCheckpointError, UnsupportedCheckpointError)) as raised:
            read_torch_file(str(path))
        assert str(path) in str(raised.value)


def _outcome(path: Path) -> str:
    """Return how reading and verifying a file ends."""
    try:
        found = read_torch_file(str(path))
        verify_torch_file(str(path))
    except (CorruptCheckpointError, UnsupportedCheckpointError):
        return "error"
    return "right" if equal(found.tensors, STATE) else "wrong"


@pytest.mark.parametrize("bit", [0, 7])
def test_archive_with_any_byte_flipped_is_an_error_or_the_right_tensors(bit: int, tmp_path: Path) -> None:
    whole = Path(saved(tmp_path / "m.pt", STATE)).read_bytes()
    path, outcomes = tmp_path / "flipped.pt", collections.Counter[str]()
    for position in range(0, len(whole), 2):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :])
        outcomes[_outcome(path)] += 1
    assert outcomes["wrong"] == 0
    assert outcomes["error"] > 100


def test_flipped_value_names_its_record(tmp_path: Path) -> None:
    path = Path(saved(tmp_path / "m.pt", {"w": torch.full((100,), 3.0)}))
    data = bytearray(path.read_bytes())
    data[data.index(torch.full((10,), 3.0).numpy().tobytes()) + 4] ^= 1
    path.write_bytes(data)
    read_torch_file(str(path))
    with pytest.raises(CorruptCheckpointError, match="'m/data/0': Bad CRC-32"):
        verify_torch_file(str(path))


def test_archive_saved_without_checksums_is_read(tmp_path: Path) -> None:
    if not hasattr(torch.serialization, "set_crc32_options"):
        pytest.skip("this torch always writes them")
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path / "m.pt", STATE)
    finally:
        torch.serialization.set_crc32_options(True)
    assert equal(read_torch_file(path).tensors, STATE)
    verify_torch_file(path)


def test_error_of_the_system_comes_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        read_torch_file(str(tmp_path / "none.pt"))
    path = saved(tmp_path / "m.pt", STATE)
    kinds: list[Callable[[], BaseException]] = [lambda: OSError(5, "Input/output error"), MemoryError]
    for kind in kinds:

        def failing(*_: Any, kind: Callable[[], BaseException] = kind, **__: Any) -> Any:
            raise kind()

        monkeypatch.setattr(torch_file.torch, "load", failing)
        with pytest.raises(type(kind())):
            read_torch_file(path)

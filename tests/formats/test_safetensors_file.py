"""Files are exact, safetensors reads ours and we read its own, and no damage is ever read as a tensor."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from formats.builders import ALL_DTYPES, EXPANDED, VIEWS, Sink, base_bytes, base_tensor, file_bytes, raw, read_all, same

from torchsaver.errors import CorruptCheckpointError, UnsupportedCheckpointError
from torchsaver.formats import chunks, safetensors_writer, staging
from torchsaver.formats.manifest import Manifest
from torchsaver.formats.safetensors_file import SafetensorsFile
from torchsaver.formats.safetensors_writer import FilePlan
from torchsaver.stored_tensor import stored_tensor

GOLDEN = (
    b"\x78\x01\x00\x00\x00\x00\x00\x00"
    b'{"__metadata__":{"format":"pt","torchsaver":"{\\"crc32c\\":\\"a016d052aa36f2c9\\",'
    b'\\"format_version\\":1,\\"global_step\\":7,\\"header_crc32c\\":\\"95e7466e\\",\\"time\\":1.5,'
    b'\\"versions\\":{\\"torch\\":\\"2.4.0\\",\\"torchsaver\\":\\"0.1.0\\"}}"},'
    b'"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"BOOL","shape":[],"data_offsets":[8,9]}}'
    + b" " * 46
    + b"\x00\x00\x80\x3f\x00\x00\x00\xc0\x01"
)
FIRST = (  # the same, as it was when each checksum stood under its key
    b"\x78\x01\x00\x00\x00\x00\x00\x00"
    b'{"__metadata__":{"format":"pt","torchsaver":"{\\"crc32c\\":{\\"b\\":\\"a016d052\\",\\"w\\":\\"aa36f2c9\\"},'
    b'\\"format_version\\":1,\\"global_step\\":7,\\"header_crc32c\\":\\"9a738688\\",\\"time\\":1.5,'
    b'\\"versions\\":{\\"torch\\":\\"2.4.0\\",\\"torchsaver\\":\\"0.1.0\\"}}"},'
    b'"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"BOOL","shape":[],"data_offsets":[8,9]}}'
    + b" " * 27
    + b"\x00\x00\x80\x3f\x00\x00\x00\xc0\x01"
)


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes our file and gives its path."""

    def write(tensors: dict[str, torch.Tensor], manifest: Manifest | None = None) -> str:
        (tmp_path / "ours").write_bytes(file_bytes(tensors, manifest))
        return str(tmp_path / "ours")

    return write


def all_tensors() -> dict[str, torch.Tensor]:
    """Return a tensor of every dtype, every view of two of them, and views with lazy bits."""
    tensors = {name: base_tensor(base_bytes(dtype), dtype) for name, dtype in ALL_DTYPES.items()}
    tensors |= {f"T.{name}": tensor.transpose(0, 3) for name, tensor in tensors.items()}
    tensors |= {f"0.{name}": tensor[0, 0, 0, 0] for name, tensor in tensors.items() if name not in ("F4", "T.F4")}
    tensors |= {f"view.{name}": view(tensors["F32"]) for name, view in {**VIEWS, **EXPANDED}.items()}
    z = torch.randn(3, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    return tensors | {"conj": z.conj(), "neg": z.conj().imag, "c128": z.to(torch.complex128).mT.conj()}


def test_file_plan_small_example_gives_these_bytes() -> None:
    tensors = {"b": torch.tensor(True), "w": torch.tensor([1.0, -2.0])}
    versions = {"torch": "2.4.0", "torchsaver": "0.1.0"}
    assert file_bytes(tensors, Manifest(global_step=7, time=1.5, versions=versions)) == GOLDEN


def test_safetensors_file_as_it_was_written_at_first_has_the_same_values_and_manifest(tmp_path: Path) -> None:
    for name, data in (("first", FIRST), ("now", GOLDEN)):
        (tmp_path / name).write_bytes(data)
    found, manifest = read_all(str(tmp_path / "first"))
    assert manifest == read_all(str(tmp_path / "now"))[1]
    assert {key: tensor.tolist() for key, tensor in found.items()} == {"b": True, "w": [1.0, -2.0]}


def test_file_plan_same_content_in_another_order_gives_same_aligned_bytes() -> None:
    tensors = all_tensors()
    data = file_bytes(tensors, Manifest(aliases={"x": "F32", "y": "F32"}))
    assert data == file_bytes(dict(reversed(tensors.items())), Manifest(aliases={"y": "F32", "x": "F32"}))
    assert (8 + int.from_bytes(data[:8], "little")) % 64 == 0


@pytest.mark.parametrize("nbytes", [1, 5, 16, 100])
def test_file_plan_window_smaller_than_tensors_gives_the_same_file(
    nbytes: int, written: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = all_tensors()
    complex128 = frozenset(key for key, tensor in tensors.items() if tensor.dtype == torch.complex128)
    whole = file_bytes(tensors)
    for module, name in [
        (staging, "WINDOW_BYTES"),
        (chunks, "CHUNK_BYTES"),
        (safetensors_writer, "CHUNK_BYTES"),
    ]:
        monkeypatch.setattr(module, name, nbytes)  # fmt: skip
    assert file_bytes(tensors) == whole
    found = read_all(written(tensors, Manifest(complex128=complex128)))[0]
    assert [key for key in tensors if not same(found[key], tensors[key])] == []


def test_file_plan_any_tensor_is_loaded_by_safetensors_bit_for_bit(written: Callable[..., str]) -> None:
    tensors = all_tensors()
    loaded = safetensors.torch.load_file(written(tensors))
    wrong = []
    for key, tensor in tensors.items():
        wanted = torch.view_as_real(tensor.resolve_conj()) if tensor.dtype == torch.complex128 else tensor
        wrong += [key] if not same(loaded.pop(key), wanted) else []
    assert (wrong, loaded) == ([], {})


@pytest.mark.parametrize("tensors", [{}, {"": torch.zeros(2), "a\0\n\u00e9/../x": torch.ones(1)}])
def test_file_plan_nothing_or_odd_keys_is_read_by_both(
    tensors: dict[str, torch.Tensor], written: Callable[..., str]
) -> None:
    path = written(tensors)
    for found in (safetensors.torch.load_file(path), read_all(path)[0]):
        assert {key: tensor.tolist() for key, tensor in found.items()} == {k: t.tolist() for k, t in tensors.items()}


def test_safetensors_file_of_safetensors_itself_is_read_bit_for_bit(tmp_path: Path) -> None:
    tensors = {key: t.contiguous().clone() for key, t in all_tensors().items() if t.dtype != torch.complex128}
    tensors = {key: t.resolve_conj().resolve_neg() for key, t in tensors.items()}
    safetensors.torch.save_file(tensors, tmp_path / "theirs", {"epoch": "3", "format": "pt"})
    found, manifest = read_all(str(tmp_path / "theirs"))
    assert [key for key in tensors if not same(found.pop(key), tensors[key])] == []
    assert (found, manifest) == ({}, Manifest())


def test_safetensors_file_of_save_model_gives_names_of_tied_tensors_as_aliases(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    safetensors.torch.save_model(model, str(tmp_path / "theirs"))
    found, manifest = read_all(str(tmp_path / "theirs"))
    ((dropped, kept),) = manifest.aliases.items()
    assert {dropped, kept} == {"a.weight", "b.weight"}
    assert kept in found
    assert dropped not in found


def test_safetensors_file_tensor_named_pt_gets_no_alias_from_the_format_mark(tmp_path: Path) -> None:
    safetensors.torch.save_file({"pt": torch.zeros(1)}, tmp_path / "theirs", {"format": "pt"})
    assert read_all(str(tmp_path / "theirs"))[1].aliases == {}


SMALL = {
    "w": torch.tensor([1.0, -2.0]),
    "z": torch.tensor(1 + 2j, dtype=torch.complex128),
    "i": torch.tensor([[7], [8]], dtype=torch.int32),
    "e": torch.zeros(0, dtype=torch.int8),
}
SMALL_MANIFEST = Manifest(global_step=7, time=1.5, aliases={"tied": "w"}, complex128=frozenset({"z"}), metadata=["x"])


def is_right(path: str, manifest: Manifest) -> bool:
    """Return whether the file gives all of SMALL and `manifest`, and nothing else."""
    found, found_manifest = read_all(path)
    return found.keys() == SMALL.keys() and all(same(found[k], SMALL[k]) for k in SMALL) and found_manifest == manifest


def test_safetensors_file_cut_at_every_byte_or_longer_is_a_corrupt_checkpoint(written: Callable[..., str]) -> None:
    path = written(SMALL, SMALL_MANIFEST)
    size = os.path.getsize(path)
    for nbytes in (size + 1, *range(size - 1, -1, -1)):
        os.truncate(path, nbytes)
        with pytest.raises(CorruptCheckpointError):
            read_all(path)


def test_safetensors_file_each_bit_flipped_is_an_error_or_changes_nothing(written: Callable[..., str]) -> None:
    path, wrong = written(SMALL, SMALL_MANIFEST), []
    manifest = read_all(path)[1]
    assert is_right(path, manifest)
    good = Path(path).read_bytes()
    fd = os.open(path, os.O_WRONLY)
    for position, byte in enumerate(good):
        for bit in range(8):
            os.pwrite(fd, bytes([byte ^ 1 << bit]), position)
            try:
                if not is_right(path, manifest):
                    wrong.append((position, bit, good[position - 12 : position + 12]))
            except (CorruptCheckpointError, UnsupportedCheckpointError):
                pass
        os.pwrite(fd, bytes([byte]), position)
    os.close(fd)
    assert wrong == []


@pytest.mark.parametrize("key", ["w", "z", "i"])
def test_safetensors_file_tensor_damaged_is_named_with_its_place(key: str, written: Callable[..., str]) -> None:
    path = written(SMALL, SMALL_MANIFEST)
    with SafetensorsFile(path) as file:
        spec = file.specs[key]
        place = 8 + int.from_bytes(Path(path).read_bytes()[:8], "little") + spec.start
        with open(path, "r+b") as writer:
            writer.seek(place)
            writer.write(b"\x55")
        for read in (lambda: file.verify([spec]), lambda: stored_tensor(file, spec).read()):
            with pytest.raises(CorruptCheckpointError, match=f"'{key}' has the checksum") as caught:
                read()
            assert (caught.value.path, caught.value.offset) == (path, place)
        for other in SMALL.keys() - {key}:
            file.verify([file.specs[other]])


def test_safetensors_file_cut_after_it_was_opened_is_a_corrupt_checkpoint(written: Callable[..., str]) -> None:
    path = written(SMALL, SMALL_MANIFEST)
    size = os.path.getsize(path)
    with SafetensorsFile(path) as file:
        os.truncate(path, size - 1)
        last = max(file.specs.values(), key=lambda spec: spec.end)
        with pytest.raises(CorruptCheckpointError, match="the file ends 1 bytes early") as caught:
            file.verify([last])
        assert caught.value.offset == size - 1


def test_safetensors_file_replaced_or_removed_while_open_is_read_on(written: Callable[..., str]) -> None:
    path = written(SMALL, SMALL_MANIFEST)
    with SafetensorsFile(path) as file:
        os.unlink(path)
        assert same(stored_tensor(file, file.specs["w"]).read(), SMALL["w"])


def test_safetensors_file_closed_or_not_opened_holds_no_descriptor(tmp_path: Path, written: Callable[..., str]) -> None:
    path = written(SMALL, SMALL_MANIFEST)
    before = len(os.listdir("/proc/self/fd"))
    with SafetensorsFile(path) as file:
        file.close()
    (tmp_path / "bad").write_bytes(b"x" * 20)
    with pytest.raises(CorruptCheckpointError):
        SafetensorsFile(str(tmp_path / "bad"))
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ValueError, match="closed"):
        file.verify([file.specs["w"]])


def test_safetensors_file_read_by_threads_at_once_gives_each_its_bytes(written: Callable[..., str]) -> None:
    tensors = {str(number): torch.full((5000,), float(number)) for number in range(8)}
    wrong: list[str] = []
    with SafetensorsFile(written(tensors)) as file:

        def read(key: str) -> None:
            wrong.extend(key for _ in range(20) if not same(stored_tensor(file, file.specs[key]).read(), tensors[key]))

        threads = [threading.Thread(target=read, args=(key,)) for key in tensors]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_safetensors_file_read_into_from_an_offset_gives_the_rest(written: Callable[..., str]) -> None:
    with SafetensorsFile(written(SMALL)) as file:
        buffer = bytearray(4)
        file.read_into(file.specs["w"], 4, memoryview(buffer))
    assert bytes(buffer) == raw(SMALL["w"][1:])


def test_file_plan_header_over_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_writer.header, "MAX_HEADER_BYTES", 200)
    with pytest.raises(ValueError, match="header"):
        file_bytes(SMALL)


@pytest.mark.parametrize(
    ("limit", "value", "reason"),
    [
        ("safetensors_header.MAX_MEMBERS", len(SMALL) + 2, "tensors and strings"),
        ("json_text.MAX_TEXT_BYTES", 300, "bytes of memory"),
        ("json_text.MAX_JSON_BYTES", 1000, "bytes of memory"),
    ],
)
def test_file_plan_refuses_what_its_reader_would_before_it_writes(
    limit: str, value: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(file_bytes(SMALL))
    monkeypatch.setattr(f"torchsaver.formats.{limit}", value)
    sink = Sink()
    with pytest.raises(ValueError, match=reason):
        FilePlan(SMALL).write(sink, SMALL, Manifest())
    assert sink.data == b""
    with pytest.raises(CorruptCheckpointError):
        SafetensorsFile(str(path))


def test_file_plan_at_the_most_members_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchsaver.formats.safetensors_header.MAX_MEMBERS", len(SMALL) + 3)
    (tmp_path / "file").write_bytes(file_bytes(SMALL))
    assert set(read_all(str(tmp_path / "file"))[0]) == set(SMALL)

"""verify_checkpoint: all damage, each where it is; errors are no damage; nothing is changed; memory stays small."""

from __future__ import annotations

import errno
import json
import os
import tracemalloc
from pathlib import Path

import pytest
import torch
from damage import flip
from safetensors.torch import save_file

import torchsaver as ts
from torchsaver.formats.safetensors_file import SafetensorsFile
from torchsaver.inspection.reports import Damage, Progress
from torchsaver.inspection.verification import verify_checkpoint
from torchsaver.storage import paths

VALUES = {"a": torch.arange(8.0), "b": torch.ones(4, dtype=torch.float64), "c": torch.tensor([1, 2], dtype=torch.int16)}


def _starts(path: Path) -> dict[str, int]:
    """Return where each tensor begins, read from the header by hand."""
    data = path.read_bytes()
    head = 8 + int.from_bytes(data[:8], "little")
    return {key: head + e["data_offsets"][0] for key, e in json.loads(data[8:head]).items() if key != "__metadata__"}


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return str(ts.Saver(VALUES).save(tmp_path / "m", 7))


@pytest.fixture
def sharded(tmp_path: Path) -> str:
    return str(ts.Saver(VALUES, max_shard_bytes=33).save(tmp_path / "s"))


def test_verify_undamaged_checkpoint_is_valid_and_counts_what_was_compared(prefix: str) -> None:
    report = verify_checkpoint(prefix)
    assert (report.verdict, report.is_sound, report.damage, report.problem) == ("valid", True, (), "")
    assert (report.tensors, report.checked_tensors, report.checked_bytes, report.checksummed_bytes) == (3, 3, 68, 68)
    assert report.files == (prefix + ".safetensors",)
    assert (report.global_step, report.sequence, report.file_bytes) == (7, 1, os.path.getsize(prefix + ".safetensors"))


@pytest.mark.parametrize("ending", ["", ".safetensors"])
def test_verify_takes_a_prefix_a_file_and_any_path(prefix: str, ending: str) -> None:
    assert verify_checkpoint(Path(prefix + ending)).verdict == "valid"
    assert verify_checkpoint(os.fsencode(prefix + ending)).verdict == "valid"


@pytest.mark.parametrize("key", list(VALUES))
@pytest.mark.parametrize("inside", [0, 1, 3])
def test_verify_damaged_tensor_names_it_and_where_it_begins(prefix: str, key: str, inside: int) -> None:
    path = Path(prefix + ".safetensors")
    start = _starts(path)[key]
    flip(path, start + inside)
    report = verify_checkpoint(prefix)
    (damage,) = report.damage
    assert damage[:3] == (str(path), key, start)
    assert "checksum" in damage.reason
    assert (report.verdict, report.is_sound, report.checked_tensors) == ("damaged", False, 3)


def test_verify_goes_on_after_damage_and_reports_all_in_the_order_of_the_bytes(prefix: str) -> None:
    path = Path(prefix + ".safetensors")
    starts = _starts(path)
    for key in ("c", "b"):
        flip(path, starts[key] + 1)
    assert [damage[:3] for damage in verify_checkpoint(prefix).damage] == [
        (str(path), key, starts[key]) for key in ("b", "c")
    ]


@pytest.mark.parametrize(("position", "offset"), [(3, 0), (12, 8), (300, 0)])
def test_verify_damaged_header_names_no_tensor(prefix: str, position: int, offset: int) -> None:
    flip(Path(prefix + ".safetensors"), position)
    (damage,) = verify_checkpoint(prefix).damage
    assert (damage.file, damage.tensor) == (prefix + ".safetensors", None)
    assert damage.offset is not None
    assert (damage.offset == 0) == (offset == 0)


def test_verify_of_a_file_cut_or_damaged_at_any_byte_reports_it_and_raises_nothing(prefix: str) -> None:
    path = Path(prefix + ".safetensors")
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position])
        assert verify_checkpoint(prefix).verdict == "damaged", f"cut at {position}"
        changed = whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]
        path.write_bytes(changed)
        if verify_checkpoint(prefix).verdict not in ("damaged", "unsupported"):
            assert _meaning(changed) == _meaning(whole), f"damaged at {position}"


def _meaning(data: bytes) -> tuple[object, bytes]:
    """Return what a file says: another last digit of the time may be the same number, and "format" says nothing."""
    head = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:head])
    manifest = json.loads(header.pop("__metadata__")["torchsaver"])
    return (header, manifest), data[head:]


def test_verify_sharded_reports_a_missing_shard_and_damage_in_the_others(sharded: str) -> None:
    first, second, third = (f"{sharded}-{number:05d}-of-00003.safetensors" for number in (1, 2, 3))
    (key,) = _starts(Path(third))
    os.remove(first)
    flip(Path(third), -1)
    report = verify_checkpoint(sharded)
    missing, damaged = report.damage
    assert missing == Damage(first, None, None, "it is missing, and the index names it")
    assert damaged[:3] == (third, key, _starts(Path(third))[key])
    assert report.files == (sharded + ".safetensors.index.json", first, second, third)
    assert report.file_bytes == sum(os.path.getsize(path) for path in (report.files[0], second, third))


def test_verify_sharded_with_a_damaged_index_and_header_still_reads_the_other_shards(sharded: str) -> None:
    index, *shards = verify_checkpoint(sharded).files
    flip(Path(index), 5)
    flip(Path(shards[0]), 3)
    flip(Path(shards[1]), -1)
    report = verify_checkpoint(sharded)
    assert [(damage.file, damage.tensor is None) for damage in report.damage] == [
        (index, True),
        (shards[0], True),
        (shards[1], False),
    ]
    assert report.checked_tensors == 2


def test_verify_shard_of_another_save_is_damage(sharded: str, tmp_path: Path) -> None:
    other = {key: value + 1 for key, value in VALUES.items()}
    ts.Saver(other, max_shard_bytes=33).save(tmp_path / "other" / "s")
    shard = Path(f"{sharded}-00002-of-00003.safetensors")
    shard.write_bytes((tmp_path / "other" / shard.name).read_bytes())
    (damage,) = verify_checkpoint(sharded).damage
    assert damage[:3] == (str(shard), None, 0)
    assert "another save" in damage.reason


def test_verify_third_party_file_is_no_checksums_and_its_values_are_not_read(tmp_path: Path) -> None:
    save_file({"x": torch.ones(3)}, tmp_path / "t.safetensors")
    report = verify_checkpoint(tmp_path / "t")
    assert (report.verdict, report.is_sound, report.tensors) == ("no_checksums", True, 1)
    assert (report.checked_tensors, report.checked_bytes, report.global_step, report.time) == (0, 0, None, None)
    path = tmp_path / "t.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert verify_checkpoint(tmp_path / "t").verdict == "damaged"


def test_verify_third_party_index_over_our_shards_is_no_checksums_and_compares_those_it_has(sharded: str) -> None:
    index = Path(sharded + ".safetensors.index.json")
    weight_map = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    report = verify_checkpoint(sharded)
    assert (report.verdict, report.tensors, report.checked_tensors) == ("no_checksums", 3, 3)
    index.write_text(json.dumps({"metadata": {}, "weight_map": {**weight_map, "zz": weight_map["a"]}}))
    (damage,) = verify_checkpoint(sharded).damage
    assert damage[:3] == (str(index), None, 0)
    assert "'zz' is not in its shard" in damage.reason


def test_verify_newer_format_is_unsupported_not_damaged(tmp_path: Path) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "n.safetensors", {"torchsaver": '{"format_version":99}'})
    report = verify_checkpoint(tmp_path / "n")
    assert (report.verdict, report.is_sound, report.damage) == ("unsupported", False, ())
    assert "upgrade" in report.problem


def test_verify_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f.safetensors")
    (damage,) = verify_checkpoint(tmp_path / "f").damage
    assert damage[1:] == (None, 0, "it is no regular file")


def test_verify_nothing_there_raises_not_found(tmp_path: Path) -> None:
    with pytest.raises(ts.CheckpointNotFoundError, match="nothing"):
        verify_checkpoint(tmp_path / "nothing")


def test_verify_error_of_the_disk_is_raised_and_is_no_damage(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(errno.EIO, "Input/output error", prefix)

    monkeypatch.setattr(SafetensorsFile, "checksums", fail)
    with pytest.raises(OSError, match="Input/output error") as caught:
        verify_checkpoint(prefix)
    assert caught.value.errno == errno.EIO


def test_verify_file_that_is_cut_while_it_is_read_is_damage(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchsaver.inspection.verification._GROUP_BYTES", 1)
    path = Path(prefix + ".safetensors")
    starts = _starts(path)

    def cut(progress: Progress) -> None:
        os.truncate(path, starts["a"] + 4)

    damage = verify_checkpoint(prefix, progress=cut).damage
    assert [one[1:3] for one in damage] == [("a", starts["a"] + 4), ("c", starts["c"])]


def test_verify_reads_the_new_checkpoint_when_a_save_replaces_it_meanwhile(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(Path(prefix + ".safetensors"), 3)
    find = paths.find_checkpoint
    calls = []

    def found(save_path: str) -> str | None:
        calls.append(save_path)
        if len(calls) == 2:  # those of the save itself come after
            ts.Saver(VALUES).save(save_path)
        return find(save_path)

    monkeypatch.setattr(paths, "find_checkpoint", found)
    assert verify_checkpoint(prefix).verdict == "valid"


def test_verify_progress_rises_to_the_total_and_what_it_raises_ends_the_verification(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchsaver.inspection.verification._GROUP_BYTES", 100)
    prefix = ts.Saver({"x": torch.zeros(3 << 18), "y": torch.zeros(5), "z": torch.zeros(20)}).save(tmp_path / "m")
    seen: list[Progress] = []
    verify_checkpoint(str(prefix), progress=seen.append)
    assert [progress.done_bytes for progress in seen] == [3 << 20, (3 << 20) + 100]
    assert {progress[1:] for progress in seen} == {((3 << 20) + 100, "m")}

    def stop(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify_checkpoint(str(prefix), progress=stop)


def test_verify_memory_stays_within_the_window_whatever_the_tensor(tmp_path: Path) -> None:
    prefix = str(ts.Saver({"x": torch.zeros(16 << 20)}).save(tmp_path / "m"))  # 64 MiB
    verify_checkpoint(prefix)
    tracemalloc.start()
    verify_checkpoint(prefix)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20


def test_verify_leaves_no_file_open(sharded: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    verify_checkpoint(sharded)
    flip(Path(f"{sharded}-00003-of-00003.safetensors"), 3)
    verify_checkpoint(sharded)
    assert len(os.listdir("/proc/self/fd")) == before

"""What a conversion writes to: never a mix, never lost, and nothing when anything is wrong."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import corpus
import pytest
import torch
from conversion.contents import FORMATS, contents, names
from faults.crash_states import materialise, snapshot
from faults.dying_disk import Fault, faults, install, open_files
from faults.promises import make_repeatable

import torchsaver as ts
from torchsaver.conversion.convert import convert_checkpoint, destination_prefix
from torchsaver.conversion.plan import Format
from torchsaver.errors import CheckpointNotFoundError, ConversionError, CorruptCheckpointError
from torchsaver.storage import bundle_files, paths

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
            for dry_run in (True, False):
                with pytest.raises(IsADirectoryError):
                    convert_checkpoint(source, tmp_path / name, to=to, overwrite=True, dry_run=dry_run)
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
    monkeypatch.setattr("torchsaver.formats.tensorflow.bundle_writer.MOST_SHARDS", 1)
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
        leaked = open_files() - before
        left = [name for name in names(root) if paths.is_temporary(name)]
        assert leaked <= 0 or error is not None, f"{fault}: {leaked} descriptors"
        assert not left or fault.sticky or "unlink" in healthy.calls[fault.n - 1], f"{fault}: {left}"
        yield fault, error, contents(root / "m")


@pytest.mark.parametrize("limits", [(None, None), (8, None), (None, 8)])
@pytest.mark.parametrize("to", FORMATS)
def test_disk_that_dies_leaves_the_old_destination_or_the_new_one(
    to: Format, limits: tuple[int | None, int | None], source: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "torchsaver")
    other = ts.save_tf_checkpoint(tmp_path / "other", {"a": torch.zeros(3), "b": torch.zeros(2)})
    (tmp_path / "d").mkdir()
    convert_checkpoint(other, tmp_path / "d" / "m", to=to, max_shard_bytes=limits[0])
    old, new = contents(other), contents(source)
    seen = []
    for fault, error, found in _outcomes(source, tmp_path / "d", to, limits[1]):
        assert found in (old, new), str(fault)
        assert error is not None or found == new, str(fault)
        seen.append((error is None, found == new))
    assert {(False, False), (False, True), (True, True)} <= set(seen)

"""Converting a checkpoint: opened, planned, and written; memory holds one tensor, whatever the checkpoint's size."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from torchsaver import arguments
from torchsaver.conversion.plan import Format, Row, plan_manifest, plan_rows
from torchsaver.conversion.source import opened_source
from torchsaver.errors import ConversionError
from torchsaver.formats.manifest import Manifest
from torchsaver.formats.safetensors_writer import plan_files
from torchsaver.formats.tensorflow.bundle_writer import BundleWriter, Part, Unread, cut_into_shards
from torchsaver.formats.tensorflow.data_types import BY_TORCH_NAME, STRING
from torchsaver.formats.tensorflow.names import INDEX_ENDING, index_beside, index_file
from torchsaver.formats.tensorflow.stored_value import key_bytes
from torchsaver.formats.torch_file import ENDINGS
from torchsaver.inspection.reports import Progress
from torchsaver.storage import paths
from torchsaver.storage.bundle_files import write_bundle
from torchsaver.storage.checkpoint_files import StagedCheckpoint, make_ready
from torchsaver.variables.mapping.rules_file import ConversionRules, parse_rules

FORMATS: tuple[Format, ...] = ("safetensors", "tf")


@dataclass(frozen=True)
class Conversion:
    """What a conversion does, or did.

    Attributes:
        source: The checkpoint it reads.
        destination: The prefix it writes.
        format: The format it writes.
        rows: What goes where.
        left_out: {what is not converted: why}.
    """

    source: str
    destination: str
    format: Format
    rows: tuple[Row, ...]
    left_out: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it, the values themselves aside."""
        return {
            "source": self.source,
            "destination": self.destination,
            "format": self.format,
            "tensors": [row.as_json() for row in self.rows],
            "left_out": dict(self.left_out),
            "total_bytes": sum(row.nbytes for row in self.rows),
        }


def convert_checkpoint(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    to: Format = "safetensors",
    rules: ConversionRules | None = None,
    max_shard_bytes: int | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Callable[[Progress], object] | None = None,
) -> Conversion:
    """Write a checkpoint in another format, or under other keys; the source stays as it is.

    What the format cannot hold is left out and named: strings, variants, and what is no tensor in torchsaver's own when
    it becomes TensorFlow's. Tied tensors stay tied in safetensors, and are written under each name otherwise.

    A file of torch.save is a tree: its keys are the paths in it, "model.fc.weight", which a rule may shorten. In
    torchsaver's own format, and without rules, the states of objects in it are states again, so that
    `Saver({"model": model, "optimizer": optimizer}).restore(destination)` restores all of it; optimizers' states go by
    the names of the parameters then, as far as the file tells them. Numbers and texts at its top become metadata.

    Args:
        source: As `load_checkpoint`; or a .pt, .pth or .bin file of torch.save, of which only tensors and plain values
            are read, or the pytorch_model.bin.index.json of several, of which only tensors are converted.
        destination: A prefix, or the file PREFIX.safetensors or PREFIX.index.
        to: "safetensors" or "tf".
        rules: How keys are renamed and values laid out, see `transfer.parse_rules`; None: they stay as they are.
        max_shard_bytes: Write several files, as `Saver` and `save_tf_checkpoint`.
        overwrite: Replace a checkpoint of that name.
        dry_run: Check everything but the values, and write nothing.
        progress: Called before each tensor, and at the end.

    Raises:
        ConversionError: Keys that come to the same one or that the format cannot hold, dtypes it does not have, layouts
            that do not fit: all of them. Nothing has been written. It is a VarListError.
        FileExistsError: There is a checkpoint of that name, and `overwrite` is not given.
        IsADirectoryError: The destination is a directory.
        CorruptCheckpointError: The source is damaged. Nothing has been written.
        UnsupportedCheckpointError: It is of a kind that cannot be read, or holds more than tensors and plain values.
        CheckpointNotFoundError: It is not there.
        OSError: As the system gave it; what was there before counts.
        TypeError, ValueError: Another argument has the wrong type or value.
    """
    if to not in FORMATS:
        raise ValueError(f"to is one of {', '.join(FORMATS)}, not {to!r}")
    prefix = destination_prefix(destination, to)
    limit = arguments.whole_number(max_shard_bytes, "max_shard_bytes", least=1)
    _require_free(prefix, to, overwrite=overwrite)
    is_ours = to == "safetensors"
    with opened_source(source, with_objects=is_ours and rules is None, with_metadata=is_ours) as opened:
        left_out = dict(opened.left_out)
        rows = plan_rows(opened, to, rules or ConversionRules(), left_out)
        manifest = plan_manifest(opened, rows, rules, to, left_out)
        conversion = Conversion(opened.path, prefix, to, tuple(rows), left_out)
        if not dry_run:
            meter = _Meter(rows, prefix, progress)
            if to == "tf":
                _write_tensorflow(prefix, rows, meter, limit, overwrite=overwrite)
            else:
                _write_safetensors(prefix, rows, meter, limit, manifest)
            meter.tell()
    return conversion


def destination_prefix(destination: str | os.PathLike[str], to: Format) -> str:
    """Return the prefix to write, as `convert_checkpoint` takes it.

    Raises:
        TypeError, ValueError: No checkpoint of this format can have this name.
        IsADirectoryError: A directory has it.
    """
    path = paths.path_text(destination, "destination")
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "the destination is a directory; add the checkpoint's name", path)
    endings = (INDEX_ENDING,) if to == "tf" else (paths.INDEX_ENDING, paths.FILE_ENDING)
    prefix = next((path.removesuffix(ending) for ending in endings if path.endswith(ending)), path)
    if prefix.endswith((INDEX_ENDING, *ENDINGS)) or index_beside(prefix) is not None:
        raise ValueError(f"destination {path!r} ends like a file that is not written here; give a prefix for {to}")
    return arguments.new_prefix(prefix, None, None, False)[0]


def _require_free(prefix: str, to: Format, *, overwrite: bool) -> None:
    files = [index_file(prefix)] if to == "tf" else [paths.index_file(prefix), paths.checkpoint_file(prefix)]
    there = list(filter(paths.is_taken, files))
    if there and not overwrite:
        message = "a checkpoint is there; give another name, or replace it (--force, overwrite=True)"
        raise FileExistsError(errno.EEXIST, message, there[0])


def read_rules_file(path: str | os.PathLike[str]) -> ConversionRules:
    """Return the rules in a TOML file.

    Raises:
        ValueError: It holds none; the message names the file and the table.
        OSError: As the system gave it.
    """
    name = paths.path_text(path, "rules")
    with open(name, "rb") as file:
        data = file.read()
    try:
        return parse_rules(data.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{name!r}: {error}") from error


class _Meter:
    """Reads values, and tells how far it is: before each, and at the end."""

    def __init__(self, rows: Sequence[Row], prefix: str, progress: Callable[[Progress], object] | None) -> None:
        self._total, self._done = sum(row.nbytes for row in rows), 0
        self._name, self._progress = os.path.basename(prefix), progress

    def read(self, row: Row) -> Any:
        """Return a value."""
        self.tell()
        self._done += row.nbytes
        return row.read()

    def tell(self) -> None:
        """Say what has been read."""
        if self._progress is not None:
            self._progress(Progress(self._done, self._total, self._name))


class _Unread(Mapping[str, torch.Tensor]):
    """Tensors that are read when they are asked for, and kept by nobody."""

    def __init__(self, rows: Sequence[Row], meter: _Meter) -> None:
        self._rows = {row.key: row for row in rows}
        self._meter = meter

    def __getitem__(self, key: str) -> torch.Tensor:
        value: torch.Tensor = self._meter.read(self._rows[key])
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def _write_safetensors(
    prefix: str, rows: Sequence[Row], meter: _Meter, max_shard_bytes: int | None, manifest: Manifest
) -> None:
    plans = plan_files({row.key: row.meta() for row in rows}, max_shard_bytes)
    make_ready(prefix, None)
    with StagedCheckpoint(prefix, plans, _Unread(rows, meter), manifest) as staged:
        staged.publish()


def _write_tensorflow(
    prefix: str, rows: Sequence[Row], meter: _Meter, max_shard_bytes: int | None, *, overwrite: bool
) -> None:
    parts = [_part(row, meter) for row in rows]
    try:
        shards = cut_into_shards(parts, max_shard_bytes)
    except ValueError as error:
        raise ConversionError([f"{error}; give a larger one"]) from error
    write_bundle(prefix, BundleWriter(shards), overwrite=overwrite)


def _part(row: Row, meter: _Meter) -> Part:
    """Return a value for a bundle, unread but for strings, whose size is not known before."""
    name = key_bytes(row.key)
    assert name is not None, "a problem otherwise"
    if row.value.dtype == STRING.name:
        return Part(name, STRING, row.value.shape, meter.read(row).ravel().tolist())
    content = Unread(row.nbytes, functools.partial(meter.read, row))
    return Part(name, BY_TORCH_NAME[row.value.dtype], tuple(row.meta().shape), content)

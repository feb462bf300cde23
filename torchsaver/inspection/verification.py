"""Does a checkpoint hold? Everything in it is read and compared, and all damage is reported, not the first.

The reader refuses a checkpoint at the first fault, because nothing damaged may be restored. Here each file is opened by
itself and each tensor read by itself, so that one fault hides no other. Nothing on the disk is changed or locked.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping

from torchsaver.errors import CheckpointNotFoundError, CorruptCheckpointError, UnsupportedCheckpointError
from torchsaver.formats.commit import Commit
from torchsaver.formats.file_layout import TensorSpec
from torchsaver.formats.manifest import Manifest
from torchsaver.formats.regular_file import read_regular
from torchsaver.formats.safetensors_file import SafetensorsFile
from torchsaver.formats.shard_index import MAX_INDEX_BYTES, parse_index
from torchsaver.formats.tensor_file import TensorFile
from torchsaver.formats.tensorflow.checkpoint import is_tensorflow, open_tensorflow
from torchsaver.inspection.reports import Damage, Progress, Verdict, VerifyReport
from torchsaver.open_checkpoint import describe_tensor
from torchsaver.storage import paths
from torchsaver.storage.aliases import is_alias

_GROUP_BYTES = 64 << 20


class Meter:
    """Counts bytes read and tells `progress`, if there is one."""

    def __init__(self, progress: Callable[[Progress], object] | None, total_bytes: int, name: str = "") -> None:
        self._progress = progress
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self.name = name

    def add(self, nbytes: int) -> None:
        """Count `nbytes` more."""
        self._done_bytes += nbytes
        if self._progress is not None:
            self._progress(Progress(self._done_bytes, max(self._done_bytes, self._total_bytes), self.name))


def verify_checkpoint(
    save_path: str | os.PathLike[str], *, progress: Callable[[Progress], object] | None = None
) -> VerifyReport:
    """Read a whole checkpoint, compare every checksum, and return everything that is damaged.

    Unlike `CheckpointReader.verify`, it goes on after damage. Memory stays within one MiB above the headers.

    Args:
        save_path: A prefix, ours or TensorFlow's, or one of its files.
        progress: Called about every MiB read; what it raises ends the verification.

    Returns:
        The report. Damage is in there and not raised; the verdict of a file without checksums is "no_checksums".

    Raises:
        CheckpointNotFoundError: Nothing is there.
        OSError: Something is there and cannot be read, which is no proof of damage.
    """
    path = paths.path_text(save_path)
    with _open(path) as opened:
        opened.read(Meter(progress, opened.bytes_to_read, os.path.basename(path)))
        if opened.errors:
            raise opened.errors[0]
        return opened.report()


def survey_checkpoint(save_path: str) -> VerifyReport:
    """Return a report from the headers alone; what cannot be read is in the report.

    Raises:
        CheckpointNotFoundError: Nothing is there.
        OSError: The place cannot be looked at.
    """
    with _open(save_path) as opened:
        return opened.report()


def examine_checkpoint(save_path: str, meter: Meter) -> VerifyReport:
    """Return what `verify_checkpoint` does, with what cannot be read in the report; raises as `survey_checkpoint`."""
    meter.name = os.path.basename(save_path)
    with _open(save_path) as opened:
        opened.read(meter)
        return opened.report()


@contextlib.contextmanager
def _open(save_path: str) -> Iterator[_Findings]:
    """Yield the checkpoint, open; when a save replaces it meanwhile, the new one."""
    with contextlib.ExitStack() as stack:
        while True:
            found = _find(save_path)
            opened = _Findings(save_path, found[0], stack)
            if opened.is_whole or _find(save_path) == found:
                break
            stack.close()
        yield opened


def _find(save_path: str) -> tuple[str, tuple[int, ...]]:
    found = paths.find_version(save_path)
    if found is None:
        raise CheckpointNotFoundError(save_path)
    return found


class _Findings:
    """The files of a checkpoint as far as they can be opened, and what is wrong with it so far."""

    def __init__(self, save_path: str, path: str, stack: contextlib.ExitStack) -> None:
        self._save_path = save_path
        self._stack = stack  # closes the files
        self._files: list[TensorFile] = []
        self._paths = [path]
        self._manifest = Manifest()
        self._damage: list[Damage] = []
        self._unsupported: list[str] = []
        self.errors: list[OSError] = []
        self._is_read = False
        self._checked_tensors = self._checked_bytes = 0
        with self._noting(path):
            if paths.is_index(path):
                self._open_shards(path)
            elif is_tensorflow(path):
                self._open_tensorflow(path)
            elif (file := self._open_file(path)) is not None:
                self._manifest = file.manifest
                self._check_file(file)

    @contextlib.contextmanager
    def _noting(self, path: str, tensor: str | None = None) -> Iterator[None]:
        """Note what is wrong with `path`, and go on after the with block."""
        try:
            yield
        except FileNotFoundError:
            self._damage.append(Damage(path, tensor, None, "it is missing, and the index names it"))
        except CorruptCheckpointError as error:
            self._damage.append(Damage(error.path, tensor, error.offset, error.reason))
        except UnsupportedCheckpointError as error:
            self._unsupported.append(str(error))
        except OSError as error:
            self.errors.append(error)

    def _open_shards(self, path: str) -> None:
        shards: dict[str, set[str]] = {}
        with self._noting(path):
            weight_map, self._manifest = parse_index(read_regular(path, MAX_INDEX_BYTES), path)
            for key, name in weight_map.items():
                shards.setdefault(name, set()).add(key)
        if not self.is_whole:  # without an index, the shards are those that have the names of shards
            shards = {name: set() for name in shard_names(path.removesuffix(paths.INDEX_ENDING))}
        for name, keys in sorted(shards.items()):
            shard = os.path.join(os.path.dirname(path), name)
            self._paths.append(shard)
            file = self._open_file(shard)
            if file is not None:
                self._check_shard(path, file, keys, self._manifest.shards)

    def _open_tensorflow(self, path: str) -> None:
        checkpoint = open_tensorflow(path)
        self._stack.callback(checkpoint.close)
        self._paths = checkpoint.paths
        for key in checkpoint.keys():
            with self._noting(path, key):
                checkpoint.find(key)
        self._files = list(checkpoint.files)

    def _open_file(self, path: str) -> SafetensorsFile | None:
        with self._noting(path):
            return self._stack.enter_context(SafetensorsFile(path))
        return None

    def _check_shard(self, index: str, file: SafetensorsFile, keys: set[str], shards: Mapping[str, int]) -> None:
        wanted = shards.get(os.path.basename(file.path))
        if wanted is not None and wanted != file.header_crc32c:
            reason = f"it belongs to another save than the index {index!r}"
            self._damage.append(Damage(file.path, None, 0, reason))
            return
        for key in sorted(keys - file.specs.keys()):
            reason = f"{key!r} is not in its shard {os.path.basename(file.path)!r}"
            self._damage.append(Damage(index, None, 0, reason))
        self._check_file(file)

    def _check_file(self, file: TensorFile) -> None:
        self._files.append(file)
        for key, spec in file.specs.items():
            with self._noting(file.path, key):
                describe_tensor(file, spec)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is wrong so far."""
        return not (self._damage or self._unsupported or self.errors)

    @property
    def bytes_to_read(self) -> int:
        """Size of the tensors that have a checksum."""
        return sum(spec.nbytes for file in self._files for spec in _checksummed(file))

    def read(self, meter: Meter) -> None:
        """Read every tensor that has a checksum, in the order of the files, and compare it."""
        self._is_read = True
        for file in self._files:
            for specs in _in_groups(_checksummed(file)):
                try:
                    file.verify(specs)
                except (CorruptCheckpointError, UnsupportedCheckpointError, OSError):
                    self._read_one_by_one(file, specs)
                else:
                    self._note_checked(specs)
                meter.add(sum(spec.nbytes for spec in specs))

    def _read_one_by_one(self, file: TensorFile, specs: list[TensorSpec]) -> None:
        for spec in specs:
            with self._noting(file.path, spec.key):
                (checksum,) = file.checksums([spec])
                self._note_checked([spec])
                file.compare(spec, checksum)

    def _note_checked(self, specs: list[TensorSpec]) -> None:
        self._checked_tensors += len(specs)
        self._checked_bytes += sum(spec.nbytes for spec in specs)

    def report(self) -> VerifyReport:
        """Return what has been found so far."""
        commit = self._manifest.commit
        return VerifyReport(
            save_path=self._save_path,
            verdict=self._verdict(),
            damage=tuple(self._damage),
            problem="; ".join([*map(str, self.errors), *self._unsupported]),
            files=tuple(self._paths),
            file_bytes=sum(map(_size, self._paths)),
            tensors=sum(len(file.specs) for file in self._files),
            checked_tensors=self._checked_tensors,
            checked_bytes=self._checked_bytes,
            checksummed_bytes=self.bytes_to_read,
            global_step=self._manifest.global_step,
            time=self._manifest.time,
            sequence=None if commit is None else commit.sequence,
            alias_of=_alias_of(self._paths[0], commit),
        )

    def _verdict(self) -> Verdict:
        if self._damage:
            return "damaged"
        if self.errors:
            return "unreadable"
        if self._unsupported:
            return "unsupported"
        is_summed = all(file.has_checksums for file in self._files)
        if not is_summed or (paths.is_index(self._paths[0]) and not self._manifest.shards):
            return "no_checksums"
        return "valid" if self._is_read else "headers_ok"


def _alias_of(path: str, commit: Commit | None) -> str | None:
    """Return the name a checkpoint was saved under, if its file bears another one."""
    name, _ = paths.prefix_name(os.path.basename(path)) or ("", False)
    return commit.kept[-1] if commit is not None and name and is_alias(name, commit) else None


def _checksummed(file: TensorFile) -> list[TensorSpec]:
    return sorted(file.specs.values(), key=lambda spec: spec.start) if file.has_checksums else []


def _in_groups(specs: Iterable[TensorSpec]) -> Iterator[list[TensorSpec]]:
    """Yield them in lists of about _GROUP_BYTES, or one larger tensor: what is read between two steps of a progress."""
    group: list[TensorSpec] = []
    for spec in specs:
        if group and spec.end - group[0].start > _GROUP_BYTES:
            yield group
            group = []
        group.append(spec)
    if group:
        yield group


def shard_names(prefix: str) -> list[str]:
    """Return the names of the files beside `prefix` that have the name of a shard of it.

    Raises:
        OSError: The directory cannot be listed.
    """
    return sorted(name for name in os.listdir(os.path.dirname(prefix) or ".") if paths.is_shard_of(prefix, name))


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # missing, which is noted already
        return 0

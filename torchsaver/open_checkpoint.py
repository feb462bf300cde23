"""An open checkpoint without its values: one file, shards, or third parties' files. Nothing here needs torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from torchsaver.errors import (
    CheckpointKeyError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsupportedCheckpointError,
    nearest_keys,
)
from torchsaver.formats.dtypes import torch_form
from torchsaver.formats.file_layout import FileLayout, TensorSpec
from torchsaver.formats.manifest import Manifest
from torchsaver.formats.regular_file import read_regular
from torchsaver.formats.safetensors_file import SafetensorsFile
from torchsaver.formats.shard_index import MAX_INDEX_BYTES, parse_index
from torchsaver.formats.tensor_file import TensorFile
from torchsaver.formats.tensorflow import names as tensorflow_names
from torchsaver.formats.tensorflow.checkpoint import TensorFlowCheckpoint, is_tensorflow, open_tensorflow
from torchsaver.storage import paths
from torchsaver.storage.state_file import get_checkpoint_state, latest_checkpoint

if TYPE_CHECKING:
    from torchsaver.formats.tensorflow.object_graph import ObjectGraph

_MOST_NAMED = 5


class TensorDescription(NamedTuple):
    """A stored tensor without its values.

    Attributes:
        key: What it is stored under.
        dtype: torch's name, without "torch.".
        shape: In torch.
        nbytes: Size in the file.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


class OpenCheckpoint:
    """An open checkpoint: what its headers say. It stays on the files it has opened.

    Owns a file descriptor for each file until `close`, the end of its `with` block, or its own end; keeps no mapping.

    Args:
        save_path: A prefix, ours or TensorFlow's, or one of its files.
        known: Layouts that its files may have again, and that need not be parsed then.

    Attributes:
        save_path: As given.
        manifest: What it says of itself; an empty one for a third party's.
        aliases: Other names of tied tensors, with the key each is stored under.

    Raises:
        CheckpointNotFoundError: Nothing is there.
        CorruptCheckpointError: A file is damaged, missing from a sharded checkpoint, or not of the format.
        UnsupportedCheckpointError: A dtype or version this torchsaver does not know.
        OSError: As the system gave it.
    """

    def __init__(self, save_path: str | os.PathLike[str], *, known: Sequence[FileLayout] = ()) -> None:
        self.save_path = paths.path_text(save_path)
        self._files: list[SafetensorsFile] = []
        self._known = known
        self._file_of: dict[str, SafetensorsFile] = {}
        self._tensorflow: TensorFlowCheckpoint | None = None
        self.manifest = self._open()
        aliases = {alias: key for alias, key in self.manifest.aliases.items() if key in self._file_of}
        self.aliases: dict[str, str] = {alias: key for alias, key in aliases.items() if alias not in self._file_of}

    def _open(self) -> Manifest:
        """Open the checkpoint's files; when a save replaces it meanwhile, those of the new one."""
        found = self._find()
        while True:
            path, _ = found
            try:
                return self._open_found(path)
            except BaseException as error:
                self.close()
                self._files, self._file_of = [], {}
                if not isinstance(error, (FileNotFoundError, CorruptCheckpointError)):
                    raise
                before, found = found, self._find()
                if found == before:
                    raise

    def _find(self) -> tuple[str, tuple[int, ...]]:
        found = paths.find_version(self.save_path)
        if found is None:
            raise CheckpointNotFoundError(self.save_path, _what_is_there(self.save_path))
        return found

    def _open_found(self, path: str) -> Manifest:
        if paths.is_index(path):
            return self._open_shards(path)
        if is_tensorflow(path):
            self._tensorflow = open_tensorflow(path)
            return Manifest()
        return self._open_single(path)

    def _open_single(self, path: str) -> Manifest:
        file = self._open_file(path)
        self._file_of = dict.fromkeys(file.specs, file)
        return file.manifest

    def _open_file(self, path: str) -> SafetensorsFile:
        file = SafetensorsFile(path, self._known)
        self._files.append(file)
        self._require_forms(file)
        return file

    def _require_forms(self, file: SafetensorsFile) -> None:
        """Check that every tensor of a file has a dtype and a shape in torch; errors as `torch_form`."""
        if file.manifest.complex128 or "F4" in file.layout.dtypes:
            for spec in file.specs.values():
                describe_tensor(file, spec)

    def _open_shards(self, index_path: str) -> Manifest:
        weight_map, manifest = parse_index(read_regular(index_path, MAX_INDEX_BYTES), index_path)
        opened: dict[str, SafetensorsFile] = {}
        for name in sorted(set(weight_map.values())):
            path = os.path.join(os.path.dirname(index_path), name)
            try:
                opened[name] = self._open_file(path)
            except FileNotFoundError as error:
                raise CorruptCheckpointError(index_path, 0, f"its shard {name!r} is missing") from error
            wanted = manifest.shards.get(name)
            if wanted is not None and wanted != opened[name].header_crc32c:
                raise CorruptCheckpointError(path, 0, f"it belongs to another save than the index {index_path!r}")
        for key, name in weight_map.items():
            if key not in opened[name].specs:
                raise CorruptCheckpointError(index_path, 0, f"{key!r} is not in its shard {name!r}")
            self._file_of[key] = opened[name]
        return manifest

    @property
    def files(self) -> Sequence[TensorFile]:
        """Its open files; of a TensorFlow checkpoint, the data files of what has been asked for."""
        return self._files if self._tensorflow is None else self._tensorflow.files

    @property
    def paths(self) -> list[str]:
        """The paths of the files that hold its tensors; of a TensorFlow checkpoint, its index too."""
        return [file.path for file in self._files] if self._tensorflow is None else self._tensorflow.paths

    @property
    def is_tensorflow(self) -> bool:
        """Whether it is one of TensorFlow's."""
        return self._tensorflow is not None

    @property
    def global_step(self) -> int | None:
        """The step given to `save`, or None."""
        return self.manifest.global_step

    @property
    def metadata(self) -> Any:
        """The JSON value given to `save` as metadata, or None."""
        return self.manifest.metadata

    @property
    def metrics(self) -> Mapping[str, float]:
        """The numbers given to `save` as metrics, by name."""
        return self.manifest.metrics

    @property
    def object_trees(self) -> Mapping[str, Any]:
        """For each object that was saved, the JSON tree its tensors hang in."""
        return self.manifest.objects

    def keys(self) -> list[str]:
        """Return the stored keys in sorted order; other names of tied tensors are in `aliases`."""
        return sorted(self._file_of) if self._tensorflow is None else self._tensorflow.keys()

    def has_tensor(self, key: str) -> bool:
        """Return whether a tensor is stored under `key` or is another name of one; no ":0" is stripped."""
        if self._tensorflow is not None:
            return self._tensorflow.find(key) is not None
        return key in self._file_of or key in self.aliases

    def describe(self, key: str) -> TensorDescription:
        """Return what the tensor `key`, or the one it is another name of, is.

        Raises:
            CheckpointKeyError: `key` is not in the checkpoint.
        """
        stored_key = self.aliases.get(key, key)
        if stored_key in self._file_of:
            file = self._file_of[stored_key]
            return describe_tensor(file, file.specs[stored_key])
        if self._tensorflow is not None and (value := self._tensorflow.find(key)) is not None:
            return TensorDescription(value.key, value.dtype_name, value.shape, value.nbytes)
        raise self.no_such_key(key)

    def no_such_key(self, key: str) -> CheckpointKeyError:
        """Return the error for a key that is not in the checkpoint; it names the nearest ones."""
        return CheckpointKeyError(self.save_path, key, nearest_keys(key, [*self.keys(), *self.aliases]))

    def object_graph(self) -> ObjectGraph | None:
        """Return the graph of objects in a TensorFlow 2 checkpoint: keys, paths, names, slots. None for any other.

        Raises:
            CorruptCheckpointError: It is damaged, or its data file is missing.
            OSError: As the system gave it.
        """
        return None if self._tensorflow is None else self._tensorflow.object_graph()

    def close(self) -> None:
        """Close the files; a second time does nothing."""
        for file in self._files:
            file.close()
        if self._tensorflow is not None:
            self._tensorflow.close()

    def __enter__(self: Opened) -> Opened:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


Opened = TypeVar("Opened", bound=OpenCheckpoint)


def describe_tensor(file: TensorFile, spec: TensorSpec) -> TensorDescription:
    """Return what a tensor of a file is in torch; errors as `torch_form`."""
    dtype, shape = torch_form(spec, is_complex128=spec.key in file.manifest.complex128, path=file.path)
    return TensorDescription(spec.key, dtype, shape, spec.nbytes)


def _what_is_there(save_path: str) -> str:
    """Return what to say of what is there where a checkpoint was wanted, "" when there is nothing."""
    file = paths.checkpoint_file(save_path)
    if os.path.isdir(file):
        return f"{file!r} is a directory"
    if patterns := tensorflow_names.v1_patterns(save_path):
        return f"it is sharded, in TensorFlow's V1 format, and its name is {' or '.join(map(repr, patterns))}"
    return "it is a directory, whose newest checkpoint latest_checkpoint() finds" if os.path.isdir(save_path) else ""


def open_checkpoint(ckpt_dir_or_file: str | os.PathLike[str]) -> OpenCheckpoint:
    """Return a checkpoint, open: that of a prefix or file, or the newest one of a directory; errors as `open_as`."""
    return open_as(OpenCheckpoint, ckpt_dir_or_file)


def open_as(kind: Callable[[str], Opened], ckpt_dir_or_file: str | os.PathLike[str]) -> Opened:
    """Return what `kind` makes of a prefix or file, or of the newest prefix of a directory.

    Args:
        kind: OpenCheckpoint, or a class of it.
        ckpt_dir_or_file: What `save` returned, a prefix of TensorFlow's, one of a checkpoint's files, a directory with
            a state file (one with absolute paths may have been moved), or that of a SavedModel.

    Raises:
        CheckpointNotFoundError: Nothing is there, or the directory's state file names nothing that is.
        UnsupportedCheckpointError: The directory's state file leads out of it; or as `kind`.
        CorruptCheckpointError, OSError: As `kind`.
    """
    path = paths.path_text(ckpt_dir_or_file, "ckpt_dir_or_file")
    if not os.path.isdir(path):
        return kind(path)
    if not os.path.lexists(paths.state_file(path)):
        values = tensorflow_names.saved_model_prefix(path)
        if paths.find_checkpoint(values) is not None:
            return kind(values)
    before = None
    while (prefix := latest_checkpoint(path)) is not None:
        if paths.own_name(path, prefix) is None:
            raise UnsupportedCheckpointError(
                path, f"its state file leads to {prefix!r}, outside the directory; pass that prefix itself to trust it"
            )
        try:
            return kind(prefix)
        except CheckpointNotFoundError:  # a writer may have rotated it away since
            if prefix == before:
                raise
            before = prefix
    if (moved := _moved_with(path)) is not None:
        return kind(moved)
    reason = f"the directory's state file {paths.STATE_FILE!r} is missing or names no checkpoint that is there"
    raise CheckpointNotFoundError(path, reason + _prefixes_in(path))


def _moved_with(directory: str) -> str | None:
    """Return the prefix in a directory that has the name of the newest one, whose path leads nowhere.

    TensorFlow's state files have absolute paths, and directories are moved.
    """
    state = get_checkpoint_state(directory)
    prefix = None if state is None else os.path.join(directory, os.path.basename(state.model_checkpoint_path))
    return prefix if prefix is not None and paths.find_checkpoint(prefix) is not None else None


def _prefixes_in(directory: str) -> str:
    """Return what to say of the checkpoints in a directory, "" when there are none."""
    files = sorted(os.listdir(directory))
    prefixes = [file.removesuffix(tensorflow_names.INDEX_ENDING) for file in files if tensorflow_names.is_index(file)]
    prefixes += [named[0] for file in files if (named := paths.prefix_name(file)) is not None and not named[1]]
    if not prefixes:
        return ""
    some = ", ".join(repr(os.path.join(directory, prefix)) for prefix in prefixes[:_MOST_NAMED])
    return f"; there are {some}{', ...' if len(prefixes) > _MOST_NAMED else ''}"

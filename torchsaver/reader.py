"""Reading checkpoints without a model: one reader over one file, shards, and third parties' files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch

from torchsaver.errors import (
    CheckpointKeyError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsupportedCheckpointError,
    nearest_keys,
)
from torchsaver.formats.manifest import Manifest
from torchsaver.formats.regular_file import read_regular
from torchsaver.formats.safetensors_file import SafetensorsFile
from torchsaver.formats.safetensors_header import Layout
from torchsaver.formats.shard_index import MAX_INDEX_BYTES, parse_index
from torchsaver.formats.tensor_bytes import dtype_text
from torchsaver.storage import paths
from torchsaver.storage.state_file import latest_checkpoint
from torchsaver.stored_tensor import StoredTensor, TensorSlice, require_known_dtypes, stored_tensor

# TF's names in debug_string: DataType in types.proto; a dtype TF does not have keeps torch's name.
_TF_DTYPES = {
    torch.float32: "DT_FLOAT",
    torch.float64: "DT_DOUBLE",
    torch.float16: "DT_HALF",
    torch.bfloat16: "DT_BFLOAT16",
    torch.int8: "DT_INT8",
    torch.int16: "DT_INT16",
    torch.int32: "DT_INT32",
    torch.int64: "DT_INT64",
    torch.uint8: "DT_UINT8",
    torch.uint16: "DT_UINT16",
    torch.uint32: "DT_UINT32",
    torch.uint64: "DT_UINT64",
    torch.bool: "DT_BOOL",
    torch.complex64: "DT_COMPLEX64",
    torch.complex128: "DT_COMPLEX128",
}


class CheckpointReader:
    """An open checkpoint: its keys, shapes and values, read one at a time. It stays on the files it has opened.

    Owns a file descriptor for each file until `close`, the end of its `with` block, or its own end; keeps no mapping.
    The dtype and shape maps come from the headers alone. `get_tensor` may be called from several threads.

    Args:
        save_path: A prefix, or a file: .safetensors, or a shard index .index.json.
        known: Layouts that its files may have again, and that need not be parsed then.

    Raises:
        CheckpointNotFoundError: Nothing is there.
        CorruptCheckpointError: A file is damaged, missing from a sharded checkpoint, or not of the format.
        UnsupportedCheckpointError: A dtype or version this torchsaver or torch does not know.
        OSError: As the system gave it.
    """

    def __init__(self, save_path: str | os.PathLike[str], *, known: Sequence[Layout] = ()) -> None:
        self.save_path = paths.path_text(save_path)
        self.files: list[SafetensorsFile] = []
        self._known = known
        self._file_of: dict[str, SafetensorsFile] = {}
        self.manifest = self._open()
        aliases = {alias: key for alias, key in self.manifest.aliases.items() if key in self._file_of}
        self.aliases: dict[str, str] = {alias: key for alias, key in aliases.items() if alias not in self._file_of}

    def _open(self) -> Manifest:
        """Open the checkpoint's files; when a save replaces it meanwhile, those of the new one."""
        found = self._find()
        while True:
            path, _ = found
            try:
                return self._open_shards(path) if paths.is_index(path) else self._open_single(path)
            except BaseException as error:
                self.close()
                self.files, self._file_of = [], {}
                if not isinstance(error, (FileNotFoundError, CorruptCheckpointError)):
                    raise
                before, found = found, self._find()
                if found == before:
                    raise

    def _find(self) -> tuple[str, tuple[int, ...]]:
        found = paths.find_version(self.save_path)
        if found is None:
            raise CheckpointNotFoundError(self.save_path, _directory_in_place(self.save_path))
        return found

    def _open_single(self, path: str) -> Manifest:
        file = self._open_file(path)
        self._file_of = dict.fromkeys(file.specs, file)
        return file.manifest

    def _open_file(self, path: str) -> SafetensorsFile:
        file = SafetensorsFile(path, self._known)
        self.files.append(file)
        require_known_dtypes(file)
        return file

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
    def global_step(self) -> int | None:
        """The step given to `save`, or None."""
        return self.manifest.global_step

    @property
    def metadata(self) -> Any:
        """The JSON value given to `save` as metadata, or None."""
        return self.manifest.metadata

    @property
    def object_trees(self) -> Mapping[str, Any]:
        """For each object that was saved, the JSON tree its tensors hang in."""
        return self.manifest.objects

    def keys(self) -> list[str]:
        """Return the stored keys in sorted order; other names of tied tensors are in `aliases`."""
        return sorted(self._file_of)

    def find(self, key: str) -> tuple[str, StoredTensor] | None:
        """Return the key a tensor is stored under and where it is, None when `key` is neither a key nor an alias."""
        stored_key = self.aliases.get(key, key)
        file = self._file_of.get(stored_key)
        return None if file is None else (stored_key, stored_tensor(file, file.specs[stored_key]))

    def file_of(self, key: str) -> SafetensorsFile | None:
        """Return the file a tensor is stored in, None when `key` is no stored key."""
        return self._file_of.get(key)

    def has_tensor(self, key: str) -> bool:
        """Return whether a tensor is stored under `key` or is another name of one; no ":0" is stripped."""
        return self.find(key) is not None

    def stored(self, key: str) -> StoredTensor:
        """Return where the tensor `key` (or the one it is another name of) is stored, without reading it.

        Raises:
            CheckpointKeyError: `key` is not in the checkpoint.
        """
        found = self.find(key)
        if found is None:
            raise CheckpointKeyError(self.save_path, key, nearest_keys(key, [*self._file_of, *self.aliases]))
        return found[1]

    def get_tensor(self, key: str) -> torch.Tensor:
        """Return the tensor stored under `key`.

        Args:
            key: Name as written in the checkpoint, e.g. "dense/kernel"; no ":0".

        Returns:
            CPU tensor, contiguous, shape and dtype as stored ([] for a scalar); owns its memory.

        Raises:
            CheckpointKeyError: `key` is not in the checkpoint; the message names the nearest keys.
            CorruptCheckpointError: The bytes end early, or their CRC-32C differs from the stored one.
        """
        return self.stored(key).read()

    def get_slice(self, key: str) -> TensorSlice:
        """Return a view of the tensor `key` that reads only the rows asked for: `reader.get_slice("w")[2:4]`."""
        return TensorSlice(self.stored(key))

    def get_variable_to_shape_map(self) -> dict[str, list[int]]:
        """Return the shape of every key, other names of tied tensors included."""
        return {key: list(self.stored(key).shape) for key in sorted([*self._file_of, *self.aliases])}

    def get_variable_to_dtype_map(self) -> dict[str, torch.dtype]:
        """Return the dtype of every key, other names of tied tensors included."""
        return {key: self.stored(key).dtype for key in sorted([*self._file_of, *self.aliases])}

    def debug_string(self) -> bytes:
        """Return a line for each key, as TF's reader does: b"w (DT_FLOAT) [2,3]"."""
        lines = []
        for key, dtype in self.get_variable_to_dtype_map().items():
            shape = ",".join(str(size) for size in self.stored(key).shape)
            lines.append(f"{key} ({_TF_DTYPES.get(dtype, dtype_text(dtype))}) [{shape}]\n")
        return "".join(lines).encode("utf-8")

    def verify(self, keys: Iterable[str] | None = None) -> None:
        """Read tensors, all of them by default, and compare their checksums; a third party's file has none.

        Raises:
            CorruptCheckpointError: The first one that differs.
        """
        wanted = set(self.keys() if keys is None else (self.stored(key).spec.key for key in keys))
        for file in self.files:
            file.verify([spec for key, spec in file.specs.items() if key in wanted and self._file_of[key] is file])

    @property
    def placement(self) -> tuple[Any, ...]:
        """Everything that decides where each tensor is and what it is; equal for checkpoints that differ in values."""
        files = [(file.layout, file.manifest.complex128) for file in self.files]
        shards = {key: self.files.index(file) for key, file in self._file_of.items()} if len(files) > 1 else None
        return files, shards, self.aliases

    def close(self) -> None:
        """Close the files; a second time does nothing."""
        for file in self.files:
            file.close()

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _directory_in_place(save_path: str) -> str:
    """Return what to say of a directory where a checkpoint's file was wanted, "" when there is none."""
    file = paths.checkpoint_file(save_path)
    if os.path.isdir(file):
        return f"{file!r} is a directory"
    return "it is a directory, whose newest checkpoint latest_checkpoint() finds" if os.path.isdir(save_path) else ""


def load_checkpoint(ckpt_dir_or_file: str | os.PathLike[str]) -> CheckpointReader:
    """Return a reader of a checkpoint: of a prefix or file, or of the newest one of a directory.

    Args:
        ckpt_dir_or_file: What `save` returned, a .safetensors or .index.json file, or a directory with a state file.

    Raises:
        CheckpointNotFoundError: Nothing is there, or the directory's state file names nothing that is.
        UnsupportedCheckpointError: The directory's state file leads out of it; or as CheckpointReader.
        CorruptCheckpointError, OSError: As CheckpointReader.
    """
    path = paths.path_text(ckpt_dir_or_file, "ckpt_dir_or_file")
    if not os.path.isdir(path):
        return CheckpointReader(path)
    before = None
    while (prefix := latest_checkpoint(path)) is not None:
        if paths.own_name(path, prefix) is None:
            raise UnsupportedCheckpointError(
                path, f"its state file leads to {prefix!r}, outside the directory; pass that prefix itself to trust it"
            )
        try:
            return CheckpointReader(prefix)
        except CheckpointNotFoundError:  # a writer may have rotated it away since
            if prefix == before:
                raise
            before = prefix
    reason = f"the directory's state file {paths.STATE_FILE!r} is missing or names no checkpoint that is there"
    raise CheckpointNotFoundError(path, reason)


def list_variables(ckpt_dir_or_file: str | os.PathLike[str]) -> list[tuple[str, list[int]]]:
    """Return (key, shape) for each key of a checkpoint, sorted; arguments and errors as `load_checkpoint`."""
    with load_checkpoint(ckpt_dir_or_file) as reader:
        return list(reader.get_variable_to_shape_map().items())


def load_variable(ckpt_dir_or_file: str | os.PathLike[str], name: str) -> torch.Tensor:
    """Return one tensor of a checkpoint; as in TF, a ":0" at the end of `name` is dropped.

    Raises:
        CheckpointKeyError: `name` is not in the checkpoint.
        CheckpointNotFoundError, CorruptCheckpointError, UnsupportedCheckpointError, OSError: As `load_checkpoint`.
    """
    with load_checkpoint(ckpt_dir_or_file) as reader:
        return reader.get_tensor(name.removesuffix(":0"))

"""Reading checkpoints without a model: an open checkpoint's values, as torch's tensors."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch

from torchsaver.formats.safetensors_file import SafetensorsFile
from torchsaver.formats.tensor_bytes import dtype_text
from torchsaver.open_checkpoint import OpenCheckpoint, open_as
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


class CheckpointReader(OpenCheckpoint):
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

    def _require_forms(self, file: SafetensorsFile) -> None:
        require_known_dtypes(file)

    def find(self, key: str) -> tuple[str, StoredTensor] | None:
        """Return the key a tensor is stored under and where it is, None when `key` is neither a key nor an alias."""
        stored_key = self.aliases.get(key, key)
        file = self._file_of.get(stored_key)
        return None if file is None else (stored_key, stored_tensor(file, file.specs[stored_key]))

    def stored(self, key: str) -> StoredTensor:
        """Return where the tensor `key` (or the one it is another name of) is stored, without reading it.

        Raises:
            CheckpointKeyError: `key` is not in the checkpoint.
        """
        return stored_tensor(*self.place(key))

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
        wanted = set(self.keys() if keys is None else (self.place(key)[1].key for key in keys))
        for file in self.files:
            file.verify([spec for key, spec in file.specs.items() if key in wanted and self._file_of[key] is file])

    @property
    def placement(self) -> tuple[Any, ...]:
        """Everything that decides where each tensor is and what it is; equal for checkpoints that differ in values."""
        files = [(file.layout, file.manifest.complex128) for file in self.files]
        shards = {key: self.files.index(file) for key, file in self._file_of.items()} if len(files) > 1 else None
        return files, shards, self.aliases, list(self.object_trees)


def load_checkpoint(ckpt_dir_or_file: str | os.PathLike[str]) -> CheckpointReader:
    """Return a reader of a checkpoint: of a prefix or file, or of the newest one of a directory.

    Args:
        ckpt_dir_or_file: What `save` returned, a .safetensors or .index.json file, or a directory with a state file.

    Raises:
        CheckpointNotFoundError: Nothing is there, or the directory's state file names nothing that is.
        UnsupportedCheckpointError: The directory's state file leads out of it; or as CheckpointReader.
        CorruptCheckpointError, OSError: As CheckpointReader.
    """
    return open_as(CheckpointReader, ckpt_dir_or_file)


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

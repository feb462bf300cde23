"""Reading checkpoints without a model: an open checkpoint's values, as torch's tensors."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from torchsaver.errors import MismatchError
from torchsaver.formats.file_layout import FileLayout, TensorSpec
from torchsaver.formats.safetensors_file import SafetensorsFile
from torchsaver.formats.tensor_file import TensorFile
from torchsaver.formats.torch_file import is_torch_file
from torchsaver.open_checkpoint import OpenCheckpoint, open_as
from torchsaver.storage import paths
from torchsaver.stored_tensor import StoredTensor, TensorSlice, require_known_dtypes, stored_tensor
from torchsaver.variables.var_list import Slots

if TYPE_CHECKING:
    from torchsaver.assembled_tensor import AssembledTensor
    from torchsaver.torch_checkpoint.tensors import MappedTensor, TorchFileTensors


class CheckpointReader(OpenCheckpoint):
    """An open checkpoint: its keys, shapes and values, read one at a time. It stays on the files it has opened.

    Owns a file descriptor for each file until `close`, the end of its `with` block, or its own end; keeps no mapping.
    The dtype and shape maps come from the headers alone. `get_tensor` may be called from several threads.

    Args:
        save_path: A prefix, ours or TensorFlow's, or one of its files; or a file of torch.save.
        known: Layouts that its files may have again, and that need not be parsed then.

    Raises:
        CheckpointNotFoundError: Nothing is there.
        CorruptCheckpointError: A file is damaged, missing from a sharded checkpoint, or not of the format.
        UnsupportedCheckpointError: A dtype or version this torchsaver or torch does not know.
        OSError: As the system gave it.
    """

    _torch_file: TorchFileTensors | None = None  # the last of its files that torch.save has written

    def _require_forms(self, file: SafetensorsFile) -> None:
        require_known_dtypes(file)

    def _open_file(self, path: str) -> SafetensorsFile:
        if path.endswith(paths.FILE_ENDING) or not is_torch_file(path):
            return super()._open_file(path)
        # Here and not above: few read such files, and everybody waits for what is imported.
        from torchsaver.torch_checkpoint.tensors import TorchFileTensors  # noqa: PLC0415

        file = self._torch_file = TorchFileTensors(path)
        self._files.append(file)
        return file

    def name_optimizers(self, slots: Slots) -> None:
        """Give the states of optimizers in a file of torch.save the names that parameters have in these slots.

        It goes by position there, and keys of such states are other ones after it. Of another checkpoint, which has
        names, nothing changes.

        Raises:
            MismatchError: Which parameters a state is of cannot be told.
        """
        if len(self._files) != 1 or (file := self._torch_file) is None:
            return
        if reasons := file.name_optimizers(slots):
            raise MismatchError(self.save_path, targets=list(reasons.items()))
        self.manifest, self._file_of = file.manifest, dict.fromkeys(file.specs, file)

    def find(self, key: str) -> tuple[str, StoredTensor | AssembledTensor | MappedTensor] | None:
        """Return the key a tensor is stored under and where it is, None when `key` is neither a key nor an alias."""
        stored_key = self.aliases.get(key, key)
        file = self._file_of.get(stored_key)
        if self._torch_file is not None and isinstance(file, type(self._torch_file)):
            return stored_key, file.stored(stored_key)
        if file is not None:
            return stored_key, stored_tensor(file, file.specs[stored_key])
        if self._tensorflow is None or (value := self._tensorflow.find(key)) is None:
            return None
        if not value.is_plain:
            from torchsaver.assembled_tensor import AssembledTensor  # noqa: PLC0415, as above

            return value.key, AssembledTensor(value)
        piece = value.pieces[0]
        return value.key, StoredTensor(piece.file, piece.spec, getattr(torch, value.dtype_name), value.shape)

    def stored(self, key: str) -> StoredTensor | AssembledTensor | MappedTensor:
        """Return where the tensor `key` (or the one it is another name of) is stored, without reading it.

        Raises:
            CheckpointKeyError: `key` is not in the checkpoint.
        """
        found = self.find(key)
        if found is None:
            raise self.no_such_key(key)
        return found[1]

    def get_tensor(self, key: str) -> torch.Tensor | Any:
        """Return the tensor stored under `key`, assembled from its slices if it was partitioned.

        Args:
            key: Name as written in the checkpoint, e.g. "dense/kernel"; no ":0". Of a TensorFlow 2 checkpoint, also
                a path of attributes, or a variable's name that no other one has.

        Returns:
            CPU tensor, contiguous, shape and dtype as stored ([] for a scalar); owns its memory. TensorFlow's elements
            of 2 and 4 bits come as int8 or uint8, or float32, and float8_e4m3b11fnuz as float32, exact values all;
            strings as a numpy array of bytes objects.

        Raises:
            CheckpointKeyError: `key` is not in the checkpoint; the message names the nearest keys.
            CorruptCheckpointError: The bytes end early, or their CRC-32C differs from the stored one.
            UnsupportedCheckpointError: It is a variant of TensorFlow's: the state of an iterator, say.
        """
        return self.stored(key).read()

    def get_slice(self, key: str) -> TensorSlice:
        """Return a view of the tensor `key` that reads only the rows asked for: `reader.get_slice("w")[2:4]`."""
        return TensorSlice(self.stored(key))

    def get_variable_to_shape_map(self) -> dict[str, list[int]]:
        """Return the shape of every key, other names of tied tensors included."""
        return {key: list(self.stored(key).shape) for key in sorted([*self.keys(), *self.aliases])}

    def get_variable_to_dtype_map(self) -> dict[str, torch.dtype | Any]:
        """Return the dtype of every key, other names of tied tensors included; strings have numpy's of objects."""
        return {key: self.stored(key).dtype for key in sorted([*self.keys(), *self.aliases])}

    def debug_string(self) -> bytes:
        """Return a line for each key, as TF's reader does: b"w (DT_FLOAT) [2,3]"."""
        lines = []
        for key in sorted([*self.keys(), *self.aliases]):
            stored = self.stored(key)
            shape = ",".join(str(size) for size in stored.shape)
            lines.append(f"{key} ({_tensorflow_name(stored)}) [{shape}]\n")
        return "".join(lines).encode("utf-8", "surrogateescape")

    def verify(self, keys: Iterable[str] | None = None) -> None:
        """Read tensors, all of them by default, and compare their checksums; a third party's file has none.

        Raises:
            CorruptCheckpointError: The first one that differs.
        """
        wanted: dict[TensorFile, dict[str, TensorSpec]] = {}
        for key in self.keys() if keys is None else keys:
            for file, spec in self.stored(key).pieces:
                wanted.setdefault(file, {})[spec.key] = spec
        for file, specs in wanted.items():
            file.verify(sorted(specs.values(), key=lambda spec: spec.start))

    @property
    def placement(self) -> Any:
        """Everything that decides where each tensor is and what it is; equal for checkpoints that differ in values.

        One of TensorFlow's is like no other: its index is not compared.
        """
        if self._tensorflow is not None:
            return object()
        files = [(file.layout, file.manifest.complex128) for file in self._files]
        shards = {key: self._files.index(file) for key, file in self._file_of.items()} if len(files) > 1 else None
        return files, shards, self.aliases, list(self.object_trees)

    @property
    def layouts(self) -> list[FileLayout]:
        """Those of its files, for another reader of files like them; none of TensorFlow's."""
        return [file.layout for file in self._files]


def _tensorflow_name(stored: StoredTensor | AssembledTensor | MappedTensor) -> str:
    """Return TensorFlow's name of a dtype, torch's where it has none: as its debug_string has it."""
    from torchsaver.assembled_tensor import AssembledTensor  # noqa: PLC0415, as above
    from torchsaver.formats.tensorflow.data_types import BY_TORCH_NAME  # noqa: PLC0415

    if isinstance(stored, AssembledTensor):
        return stored.value.data_type.debug_name
    data_type = BY_TORCH_NAME.get(stored.dtype_name)
    return stored.dtype_name if data_type is None else data_type.debug_name


def load_checkpoint(ckpt_dir_or_file: str | os.PathLike[str]) -> CheckpointReader:
    """Return a reader of a checkpoint: of a prefix or file, or of the newest one of a directory.

    Args:
        ckpt_dir_or_file: What `save` returned, a prefix of TensorFlow's, one of a checkpoint's files, a directory with
            a state file, or that of a SavedModel; or a file of torch.save, of which only tensors and plain values are
            read.

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


def load_variable(ckpt_dir_or_file: str | os.PathLike[str], name: str) -> torch.Tensor | Any:
    """Return one tensor of a checkpoint, as `get_tensor`; as in TF, a ":0" at the end of `name` is dropped.

    Raises:
        CheckpointKeyError: `name` is not in the checkpoint.
        CheckpointNotFoundError, CorruptCheckpointError, UnsupportedCheckpointError, OSError: As `load_checkpoint`.
    """
    with load_checkpoint(ckpt_dir_or_file) as reader:
        return reader.get_tensor(name.removesuffix(":0"))

"""A TensorFlow checkpoint of either version, opened by the file that was found for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torchsaver.errors import CorruptCheckpointError
from torchsaver.formats.regular_file import RegularFile
from torchsaver.formats.tensor_file import TensorFile
from torchsaver.formats.tensorflow import names
from torchsaver.formats.tensorflow.sstable import has_magic

if TYPE_CHECKING:
    from torchsaver.formats.tensorflow.object_graph import ObjectGraph
    from torchsaver.formats.tensorflow.stored_value import StoredValue


class TensorFlowCheckpoint(Protocol):
    """An open checkpoint: its keys, and where what is under them is."""

    @property
    def files(self) -> list[TensorFile]:
        """The files of what has been asked for."""

    @property
    def paths(self) -> list[str]:
        """The paths of all its files."""

    def keys(self) -> list[str]:
        """The keys, sorted."""

    def find(self, key: str) -> StoredValue | None:
        """What is stored under a key or under another name of it, None without it."""

    def object_graph(self) -> ObjectGraph | None:
        """The graph of the objects that were saved, if there is one."""

    def close(self) -> None:
        """Close the files."""


def is_tensorflow(path: str) -> bool:
    """Return whether a file is one of TensorFlow's: by its name an index, or a table.

    Raises:
        CorruptCheckpointError: It is no regular file, or a data file or graph of TensorFlow's without the index.
        OSError: As the system gave it.
    """
    if names.is_index(path):
        return True
    if (index := names.index_beside(path)) is not None:
        what = "a graph of TensorFlow's, without values" if names.is_graph(path) else "a data file of TensorFlow's"
        raise CorruptCheckpointError(path, 0, f"it is {what}, and the checkpoint's index {index!r} is missing")
    if path.endswith(".safetensors"):
        return False
    file = RegularFile(path)
    try:
        return has_magic(file)
    finally:
        file.close()


def open_tensorflow(path: str) -> TensorFlowCheckpoint:
    """Return the checkpoint that a file of TensorFlow's belongs to.

    Raises:
        CorruptCheckpointError: It is damaged, or one of its files is missing.
        UnsupportedCheckpointError: It is of a newer version.
        OSError: As the system gave it.
    """
    # Here and not above: few need them, and V1 needs numpy, which takes longer to import than an index to be listed.
    if names.is_index(path):
        from torchsaver.formats.tensorflow.bundle import Bundle  # noqa: PLC0415

        return Bundle(path)
    from torchsaver.formats.tensorflow.v1_checkpoint import V1Checkpoint  # noqa: PLC0415

    paths = names.v1_shards(path)
    try:
        return V1Checkpoint(paths)
    except FileNotFoundError as error:
        reason = f"it is one of {len(paths)} files, and {error.filename!r} is missing; copy all of them"
        raise CorruptCheckpointError(path, 0, reason) from error

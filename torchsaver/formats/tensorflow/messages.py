"""Messages that TensorFlow's checkpoints of both versions have: TensorShapeProto and VersionDef.

Source: tensor_shape.proto and versions.proto in TensorFlow.
"""

from __future__ import annotations

from torchsaver.formats.tensorflow.wire import Schema, parse_message

_READER_VERSION = 1  # of both versions; what a checkpoint may ask for
FOR_OTHER_READERS = f"it says that readers of version {_READER_VERSION} cannot read it"
_SHAPE = Schema({2: ("dims", "bytes*"), 3: ("unknown_rank", "int64")})
_DIM = Schema({1: ("size", "int64")})
_VERSIONS = Schema({2: ("min_consumer", "int64"), 3: ("bad_consumers", "int64*")})


def parse_shape(data: bytes) -> tuple[int, ...] | None:
    """Return the sizes in a TensorShapeProto, unchecked; None where even the rank is unknown.

    Raises:
        ValueError: It is none.
    """
    shape = parse_message(data, _SHAPE)
    return None if shape["unknown_rank"] else tuple(parse_message(dim, _DIM)["size"] for dim in shape["dims"])


def is_for_other_readers(data: bytes) -> bool:
    """Return whether a VersionDef says that readers like this one cannot read what it belongs to.

    Raises:
        ValueError: It is none.
    """
    versions = parse_message(data, _VERSIONS)
    return bool(versions["min_consumer"] > _READER_VERSION or _READER_VERSION in versions["bad_consumers"])

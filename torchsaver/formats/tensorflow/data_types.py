"""TensorFlow's dtypes in a checkpoint: how many bytes an element takes, and what it becomes in torch.

Source: DataType in TensorFlow's types.proto; item sizes as its bundle writer has them.
"""

from __future__ import annotations

from typing import NamedTuple


class DataType(NamedTuple):
    """A dtype of TensorFlow.

    Attributes:
        number: In DataType.
        name: As TensorFlow calls it, "float" or "int4".
        item_bytes: Of an element in a file; 0: they differ (strings, variants).
        torch_name: Of the torch dtype it is read as; "" where torch has none that would do.
        stored: safetensors' name of a dtype with the same bytes; "" where the bytes are another thing than in torch.
    """

    number: int
    name: str
    item_bytes: int
    torch_name: str
    stored: str = ""

    @property
    def debug_name(self) -> str:
        """The name in TensorFlow's listings, "DT_FLOAT"."""
        return f"DT_{self.name.upper()}"


STRING = DataType(7, "string", 0, "")
VARIANT = DataType(21, "variant", 0, "")
_TYPES = [
    DataType(1, "float", 4, "float32", "F32"),
    DataType(2, "double", 8, "float64", "F64"),
    DataType(3, "int32", 4, "int32", "I32"),
    DataType(4, "uint8", 1, "uint8", "U8"),
    DataType(5, "int16", 2, "int16", "I16"),
    DataType(6, "int8", 1, "int8", "I8"),
    STRING,
    DataType(8, "complex64", 8, "complex64", "C64"),
    DataType(9, "int64", 8, "int64", "I64"),
    DataType(10, "bool", 1, "bool", "BOOL"),
    DataType(11, "qint8", 1, "int8", "I8"),  # no scale is stored with the quantized ones
    DataType(12, "quint8", 1, "uint8", "U8"),
    DataType(13, "qint32", 4, "int32", "I32"),
    DataType(14, "bfloat16", 2, "bfloat16", "BF16"),
    DataType(15, "qint16", 2, "int16", "I16"),
    DataType(16, "quint16", 2, "uint16", "U16"),
    DataType(17, "uint16", 2, "uint16", "U16"),
    DataType(18, "complex128", 16, "complex128", "C128"),
    DataType(19, "half", 2, "float16", "F16"),
    VARIANT,
    DataType(22, "uint32", 4, "uint32", "U32"),
    DataType(23, "uint64", 8, "uint64", "U64"),
    DataType(24, "float8_e5m2", 1, "float8_e5m2", "F8_E5M2"),
    DataType(25, "float8_e4m3fn", 1, "float8_e4m3fn", "F8_E4M3"),
    DataType(26, "float8_e4m3fnuz", 1, "float8_e4m3fnuz", "F8_E4M3FNUZ"),
    DataType(27, "float8_e4m3b11fnuz", 1, "float32"),
    DataType(28, "float8_e5m2fnuz", 1, "float8_e5m2fnuz", "F8_E5M2FNUZ"),
    DataType(29, "int4", 1, "int8"),  # the small ones take a byte each, with the value in its low bits
    DataType(30, "uint4", 1, "uint8"),
    DataType(31, "int2", 1, "int8"),
    DataType(32, "uint2", 1, "uint8"),
    DataType(33, "float4_e2m1fn", 1, "float32"),
]
DATA_TYPES = {data_type.number: data_type for data_type in _TYPES}
# The plain type for each torch dtype: what a bundle is written with.
BY_TORCH_NAME = {t.torch_name: t for t in _TYPES if t.stored and not t.name.startswith("q")}

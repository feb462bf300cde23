"""What dtypes are called in a safetensors file and in torch, as names alone: a header can be shown without torch."""

from __future__ import annotations

from torchsaver.errors import CorruptCheckpointError, UnsupportedCheckpointError
from torchsaver.formats.file_layout import TensorSpec

# safetensors' names (safetensors/src/tensor.rs, enum Dtype). complex128 has none: it is stored as pairs of F64.
TORCH_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",  # torch 2.7 has it
    "F4": "float4_e2m1fn_x2",  # torch 2.8 has it
}
COMPLEX128 = "complex128"


def torch_form(spec: TensorSpec, *, is_complex128: bool, path: str) -> tuple[str, tuple[int, ...]]:
    """Return the name of the dtype and the shape that a tensor of the file `path` has in torch.

    Args:
        spec: The tensor.
        is_complex128: Whether the manifest notes it as complex128.
        path: Its file, for errors.

    Raises:
        CorruptCheckpointError: It is noted as complex128, and is no pairs of F64.
        UnsupportedCheckpointError: It is F4 in an odd number, which torch has no shape for.
    """
    shape = spec.shape
    if is_complex128:
        if spec.dtype != "F64" or shape[-1:] != (2,):
            reason = f"{spec.key!r} is noted as complex128, and is {spec.dtype} {shape}"
            raise CorruptCheckpointError(path, 0, reason)
        return COMPLEX128, shape[:-1]
    if spec.dtype == "F4":
        if not shape or shape[-1] % 2:
            raise UnsupportedCheckpointError(path, f"{spec.key!r} is F4 {list(shape)}; torch keeps them in pairs")
        shape = (*shape[:-1], shape[-1] // 2)
    return TORCH_NAMES[spec.dtype], shape

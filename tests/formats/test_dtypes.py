"""The names of dtypes: the same tensors with torch and without it."""

import pytest
import torch

from torchsaver.errors import CorruptCheckpointError, UnsupportedCheckpointError
from torchsaver.formats.dtypes import TORCH_NAMES, torch_form
from torchsaver.formats.file_layout import DTYPE_BITS, TensorSpec
from torchsaver.formats.tensor_bytes import TORCH_DTYPES, dtype_text

NEWER_THAN_TORCH_2_4 = {"F8_E8M0", "F4"}


def test_every_dtype_of_a_header_has_a_name_and_all_but_the_newest_a_dtype() -> None:
    assert TORCH_NAMES.keys() == DTYPE_BITS.keys()
    assert TORCH_NAMES.keys() - TORCH_DTYPES.keys() <= NEWER_THAN_TORCH_2_4


@pytest.mark.parametrize("name", TORCH_DTYPES)
def test_name_is_what_torch_says_and_the_size_is_that_of_the_header(name: str) -> None:
    dtype = TORCH_DTYPES[name]
    assert torch_form(_spec(name, (2,)), is_complex128=False, path="f")[0] == dtype_text(dtype)
    values_an_item = 2 if name == "F4" else 1
    assert dtype.itemsize * 8 == DTYPE_BITS[name] * values_an_item


@pytest.mark.parametrize(
    ("dtype", "shape", "is_complex128", "wanted"),
    [
        ("F32", (), False, ("float32", ())),
        ("F32", (3, 2), False, ("float32", (3, 2))),
        ("F64", (3, 2), True, ("complex128", (3,))),
        ("F64", (2,), True, ("complex128", ())),
        ("F4", (3, 4), False, ("float4_e2m1fn_x2", (3, 2))),
        ("F4", (0,), False, ("float4_e2m1fn_x2", (0,))),
    ],
)
def test_form_is_that_in_torch(dtype: str, shape: tuple[int, ...], is_complex128: bool, wanted: object) -> None:
    assert torch_form(_spec(dtype, shape), is_complex128=is_complex128, path="f") == wanted


@pytest.mark.parametrize(("dtype", "shape"), [("F64", (2, 3)), ("F64", ()), ("F32", (2,)), ("F4", (2,))])
def test_complex128_that_is_no_pairs_of_f64_is_damage(dtype: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(CorruptCheckpointError, match=f"'x' is noted as complex128, and is {dtype}") as caught:
        torch_form(_spec(dtype, shape), is_complex128=True, path="f")
    assert (caught.value.path, caught.value.offset) == ("f", 0)


@pytest.mark.parametrize("shape", [(), (3,), (2, 1)])
def test_odd_number_of_float4_is_unsupported(shape: tuple[int, ...]) -> None:
    with pytest.raises(UnsupportedCheckpointError, match=r"'x' is F4 .*in pairs") as caught:
        torch_form(_spec("F4", shape), is_complex128=False, path="f")
    assert caught.value.path == "f"


def _spec(dtype: str, shape: tuple[int, ...]) -> TensorSpec:
    nbytes = torch.Size(shape).numel() * DTYPE_BITS[dtype] // 8
    return TensorSpec("x", dtype, shape, 0, nbytes)

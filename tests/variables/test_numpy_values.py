"""numpy arrays and numbers in a state: exact dtypes and values back, and no file makes Python objects of bytes."""

from __future__ import annotations

import base64
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from variables.states import Holder, described, flatten, round_trip

import torchsaver as ts
from torchsaver.errors import VarListTypeError
from torchsaver.variables.state_tree import tensor_keys, unflatten

AS_TENSORS = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
]
AS_JSON = [">f4", ">i8", ">c16", "U3", ">U3", "S4", "V5", "M8[ns]", "M8[25s]", "m8[D]", "M8", ">M8[us]", "longdouble"]
STRUCTURED: list[Any] = [
    np.dtype([("a", "i1"), ("b", ">f8")]),
    np.dtype([("a", "i1"), ("b", "f8")], align=True),
    np.dtype([("a", "U2", (2, 3)), ("b", [("c", "?"), ("d", "M8[s]")])]),
    np.dtype({"names": ["x", "y"], "formats": ["i4", "i4"], "offsets": [8, 0], "itemsize": 20}),
    np.dtype({"names": ["all", "low"], "formats": ["u4", "u2"], "offsets": [0, 0]}),  # fields over one another
]
FLOATS = np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)


def _filled(dtype: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return an array of some bytes."""
    array = np.zeros(shape, dtype)
    if array.dtype.kind not in "bU" and array.dtype.names is None:  # there not all bytes are values
        array.reshape(-1).view(np.uint8)[:] = np.arange(array.nbytes) % 7
    else:
        array[...] = np.ones(shape, bool).astype(dtype) if array.dtype.names is None else array
    return array


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3)], ids=str)
@pytest.mark.parametrize("dtype", [*AS_TENSORS, *AS_JSON, *STRUCTURED], ids=str)
def test_array_of_any_dtype_and_shape_comes_back_writable_with_memory_of_its_own(
    dtype: Any, shape: tuple[int, ...]
) -> None:
    array = _filled(dtype, shape)
    found = round_trip({"a": array})["a"]
    assert described(found) == described(array)
    assert found.dtype.isnative == array.dtype.isnative
    assert type(found) is np.ndarray
    assert found.flags.owndata
    assert found.flags.carray or not array.dtype.isnative
    assert found.flags.writeable


@pytest.mark.parametrize("dtype", AS_TENSORS)
def test_array_whose_dtype_torch_has_is_a_tensor_under_its_path(dtype: str) -> None:
    tree, tensors = flatten("o", {"a": [np.ones(3, dtype)]})
    assert tree == {"dict": {"a": [{"ndarray": "o.a.0"}]}}
    assert tensor_keys(tree) == ["o.a.0"]
    assert str(tensors["o.a.0"].dtype) == f"torch.{dtype}"


@pytest.mark.parametrize("dtype", [*AS_JSON, *STRUCTURED], ids=str)
def test_array_whose_dtype_torch_lacks_is_json(dtype: Any) -> None:
    tree, tensors = flatten("o", np.zeros(3, dtype))
    assert (list(tree), tensors) == (["ndarray"], {})
    assert tensor_keys(tree) == []


READ_ONLY = FLOATS.copy()
READ_ONLY.flags.writeable = False
UNALIGNED = np.frombuffer(bytearray(b"\0" + FLOATS.tobytes()), np.float32, offset=1)
FIELD = np.array([(1, 2.0), (3, 4.0)], [("a", "i1"), ("b", "f8")])["b"]  # a stride of 9 bytes
LAYOUTS = {
    "transposed": FLOATS.T,
    "fortran": np.asfortranarray(FLOATS),
    "strided": FLOATS[:, ::2, 1::2],
    "reversed": FLOATS[::-1, :, ::-1],
    "one of reversed": FLOATS[0, 0, ::-1][:1],
    "none of reversed": FLOATS[0, 0, ::-1][:0],
    "broadcast": np.broadcast_to(FLOATS, (2, *FLOATS.shape)),
    "read-only": READ_ONLY,
    "read-only scalar": READ_ONLY[0, 0, :1].reshape(()),
    "unaligned": UNALIGNED,
    "field": FIELD,
    "one of a field": FIELD[:1],
    "transposed texts": np.array([["a", "bc"], ["d", ""]]).T,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_array_of_any_layout_is_stored_by_its_values(name: str) -> None:
    array = LAYOUTS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert described(round_trip([array])) == described([array])


def test_array_that_is_writable_and_row_major_is_stored_from_its_own_memory() -> None:
    array = np.zeros(3)
    _, tensors = flatten("o", array)
    array[1] = 7
    assert tensors["o"].tolist() == [0, 7, 0]


def test_array_with_gaps_between_its_fields_is_written_without_what_the_memory_holds_there() -> None:
    array = np.frombuffer(b"\xff" * 16, np.dtype([("a", "u1"), ("b", "u8")], align=True))
    tree, _ = flatten("o", array)
    assert base64.b64decode(tree["ndarray"][2]) == b"\xff" + bytes(7) + b"\xff" * 8


@settings(max_examples=50, deadline=None)
@given(
    nps.arrays(
        st.one_of(nps.scalar_dtypes(), nps.nested_dtypes(max_itemsize=100)),
        nps.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
    )
)
def test_array_of_a_random_dtype_comes_back_or_is_refused_with_its_path(array: np.ndarray[Any, Any]) -> None:
    if array.dtype.itemsize == 0 or "((" in repr(array.dtype):  # a field with a title
        with pytest.raises(VarListTypeError, match=r"'o\.0' is a numpy array of dtype"):
            round_trip([array])
    else:
        assert described(round_trip([array])) == described([array])


@pytest.mark.parametrize(
    "array",
    [
        np.array([1, None], object),
        np.zeros(2, [("a", "i4"), ("b", "O")]),
        np.zeros(2, [("a", [("b", "O")])]),
        np.zeros(2, [("a", "O", (2,))]),
        np.array([None, object()]),
        np.array([[1], {}], object)[:, np.newaxis],
    ],
    ids=lambda array: str(array.dtype),
)
def test_array_of_objects_is_refused_with_its_path(array: np.ndarray[Any, Any]) -> None:
    with pytest.raises(VarListTypeError, match=r"'o\.a\.0' is a numpy array of Python objects .* use a list"):
        flatten("o", {"a": [array]})


@pytest.mark.parametrize("dtype", [np.dtype([(("title", "a"), "f4")]), np.dtype([]), np.dtype("V0")], ids=str)
def test_array_whose_dtype_would_come_back_as_another_is_refused_with_its_path(dtype: Any) -> None:
    with pytest.raises(VarListTypeError, match=r"'o\.a' is a numpy array of dtype .*convert it first"):
        flatten("o", {"a": np.empty(2, dtype)})


@pytest.mark.parametrize("dtype", [*AS_TENSORS, ">f4", "M8[ns]", "m8[D]", "longdouble"])
def test_number_of_numpy_comes_back_with_its_type(dtype: str) -> None:
    value = np.ones(1, dtype)[0]
    found = round_trip([value])[0]
    assert type(found) is type(value)
    assert (found, found.dtype) == (value, value.dtype)


# ---- hostile trees


def _data(size: int) -> str:
    return base64.b64encode(bytes(size)).decode()


def _fields(*fields: Any, itemsize: Any = 8, align: Any = False) -> dict[str, Any]:
    return {"fields": list(fields), "itemsize": itemsize, "align": align}


HOSTILE: list[Any] = [
    3,
    [],
    {},
    ["<f4", [1]],
    ["<f4", [1], _data(3)],
    ["<f4", [1], _data(5)],
    ["<f4", [1], "?"],
    ["<f4", [1], 3],
    ["|O", [1], _data(8)],
    ["O", [1], _data(8)],
    ["|O8", [1], _data(8)],
    ["object", [1], _data(8)],
    ["f8,O", [1], _data(16)],
    ["f4", [1], _data(4)],
    ["=f4", [1], _data(4)],
    ["float32", [1], _data(4)],
    ["<f7", [1], _data(7)],
    ["|V0", [9], ""],
    ["<U0", [9], ""],
    ["|S99999999999", [0], ""],
    ["|T16", [1], _data(16)],
    ["(2,)f4", [1], _data(8)],
    ["|a3", [1], _data(3)],
    ["<M8[zz]", [1], _data(8)],
    ["<M8[ns", [1], _data(8)],
    ["<M8[999999999999s]", [1], _data(8)],
    [None, [1], _data(8)],
    [3, [1], _data(8)],
    [[["a", "O"]], [1], _data(8)],
    [_fields(["a", "|O", 0]), [1], _data(8)],
    [_fields(["a", {"subarray": ["|O", [1]]}, 0]), [1], _data(8)],
    [_fields(["a", _fields(["b", "|O", 0]), 0]), [1], _data(8)],
    [_fields(["a", "<f4", 6]), [1], _data(8)],
    [_fields(["a", "<f4", -4]), [1], _data(8)],
    [_fields(["a", "<f4", "0"]), [1], _data(8)],
    [_fields(["a", "<f4"]), [1], _data(8)],
    [_fields(["a", "<f4", 0], ["a", "<f4", 4]), [1], _data(8)],
    [_fields([3, "<f4", 0]), [1], _data(8)],
    [_fields(["a", "<f4", 0], itemsize=-8), [1], _data(8)],
    [_fields(["a", "<f4", 0], itemsize="8"), [1], _data(8)],
    [_fields(["a", "<f4", 0], itemsize=1 << 80), [1], _data(8)],
    [_fields(["a", "<f4", 1], align=True), [1], _data(8)],
    [_fields(["a", "<f4", 0], align=3), [1], _data(8)],
    [_fields(), [1], _data(8)],
    [_fields(itemsize=0), [1 << 50], ""],
    [{"fields": [["a", "<f8", 0]], "itemsize": 8}, [1], _data(8)],
    [{"fields": 3, "itemsize": 8, "align": False}, [1], _data(8)],
    [{"subarray": ["<f4", [2]]}, [1], _data(8)],
    [{"subarray": ["<f4", [1 << 40]]}, [0], ""],
    [{"subarray": ["<f4", [-1]]}, [1], _data(4)],
    [{"subarray": 3}, [1], _data(4)],
]


HOSTILE_SHAPES: list[Any] = [
    ["<f4", [2], _data(4)],
    ["<f4", [-1], _data(4)],
    ["<f4", [-1, -1], _data(4)],
    ["<f4", [True], _data(4)],
    ["<f4", ["1"], _data(4)],
    ["<f4", [1.0], _data(4)],
    ["<f4", {}, _data(4)],
    ["<f4", "", _data(4)],
    ["<f4", [1] * 65, _data(4)],
    ["<f4", [1 << 40, 1 << 40, 0], ""],
    ["<f4", [1 << 80, 0], ""],
]


@pytest.mark.parametrize("tree", [*HOSTILE, *HOSTILE_SHAPES], ids=str)
def test_unflatten_of_a_hostile_array_is_a_value_error(tree: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        unflatten([{"ndarray": tree}], lambda key: torch.zeros(1))


@pytest.mark.parametrize("tree", HOSTILE, ids=str)
def test_unflatten_of_a_hostile_number_is_a_value_error(tree: Any) -> None:
    tree = [tree[0], tree[2]] if isinstance(tree, list) and len(tree) == 3 else tree
    with pytest.raises(ValueError):  # noqa: PT011
        unflatten([{"numpy": tree}], lambda key: torch.zeros(1))


@pytest.mark.parametrize("dtype", ["<U1", "|S4", "|V4"])
def test_unflatten_of_a_number_that_is_a_text_is_a_value_error(dtype: str) -> None:
    with pytest.raises(ValueError, match="no number has the dtype"):
        unflatten({"numpy": [dtype, _data(4)]}, lambda key: torch.zeros(1))


def test_unflatten_of_an_array_whose_tensor_numpy_has_no_dtype_for_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"not a state tree: .*BFloat16"):
        unflatten({"ndarray": "o"}, lambda key: torch.zeros(1, dtype=torch.bfloat16))


def test_unflatten_gives_an_array_that_shares_no_memory_with_the_tensor() -> None:
    tensor = torch.zeros(2)
    unflatten({"ndarray": "o"}, lambda key: tensor)[0] = 7
    assert tensor.tolist() == [0, 0]


# ---- a file


def test_arrays_through_a_checkpoint_come_back_and_other_readers_see_tensors(tmp_path: Path) -> None:
    state = {name: array for name, array in LAYOUTS.items() if array.size}
    state |= {dtype: np.ones((2, 2), dtype) for dtype in AS_TENSORS} | {"date": np.array(["2020-01-01"], "M8[D]")}
    prefix = ts.Saver({"o": Holder(state)}).save(tmp_path / "m")
    fresh = Holder()
    report = ts.Saver({"o": fresh}).restore(prefix)
    assert described(fresh.state) == described(state)
    assert report.unused == ()
    assert torch.equal(ts.load_variable(prefix, "o.transposed"), torch.from_numpy(FLOATS.T.copy()))


def test_save_of_an_array_of_objects_is_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    holder = Holder(1)
    saver = ts.Saver({"o": holder})
    holder.state = {"a": np.array([None])}
    with pytest.raises(ts.VarListTypeError, match=r"'o\.a' is a numpy array of Python objects"):
        saver.save(tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_restore_of_an_array_whose_bytes_were_damaged_is_an_error(tmp_path: Path) -> None:
    prefix = ts.Saver({"o": Holder(np.full(1000, 7, np.uint8))}).save(tmp_path / "m")
    path = Path(f"{prefix}.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\x08")
    holder = Holder("old")
    with pytest.raises(ts.CorruptCheckpointError):
        ts.Saver({"o": holder}).restore(prefix)
    assert holder.state == "old"

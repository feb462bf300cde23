"""save_tf_checkpoint: TensorFlow's own bytes from a mapping of tensors, or every problem at once and nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import corpus
import numpy as np
import pytest
import torch
from corpus import CORPUS
from faults.dying_disk import install
from formats import bundles
from formats.builders import raw
from hypothesis import given
from hypothesis import strategies as st

from torchsaver.errors import VarListError, VarListTypeError
from torchsaver.formats.tensorflow.data_types import BY_TORCH_NAME, DATA_TYPES, STRING
from torchsaver.formats.tensorflow.slices import Range, parse_slice, slice_key
from torchsaver.tf_saving import save_tf_checkpoint

# Checkpoints all of whose values are tensors or strings here too.
CASES = ["v2_list", "v2_dict", "strings_v2", "many_keys_v2", "long_prefix_v2", "odd_names_v2", "non_utf8_names_v2"]
CASES += ["scalars_empty_v2", "string_variable_saver", "tf1_adam_ema", "bert_like", "resnet_like"]
PARTITIONS = {"v2_partitioned": {"emb": [3, 1], "kern": [1, 4], "deep/vec": [2]}}


def _values(case: str) -> dict[str, Any]:
    """Return the values of a case as its user would have them, in TensorFlow's order of saving."""
    prefix = CORPUS / case / corpus.expected(case)["prefix"]
    arrays = np.load(CORPUS / case / "expected.npz")
    entries = bundles.entries(f"{prefix}.index")
    values: dict[bytes, Any] = {}
    for tensor in corpus.expected(case)["tensors"]:
        if tensor["store"] == "hex":
            value: Any = strings([bytes.fromhex(text) for text in tensor["hex"]], tensor["shape"])
        else:
            start, nbytes = tensor.get("at", (0, None))
            data = arrays["blob" if "at" in tensor else tensor["npz"]].tobytes()[start:][:nbytes]
            dtype = getattr(torch, DATA_TYPES[tensor["enum"]].torch_name)
            value = torch.frombuffer(bytearray(data) or bytearray(16), dtype=dtype)[: len(data) // dtype.itemsize]
            value = value.reshape(tensor["shape"])
        values[corpus.key_of(tensor)] = value

    def place(key: bytes) -> tuple[int, int]:
        slices = entries[key]["slices"]
        entry = entries[slice_key(key, parse_slice(slices[0]))] if slices else entries[key]
        return entry["offset"], entry["size"]

    return {os.fsdecode(key): values[key] for key in sorted(values, key=place)}


def strings(texts: list[bytes], shape: Any = None) -> np.ndarray[Any, Any]:
    """Return a string tensor."""
    array = np.empty(len(texts), object)
    array[:] = texts
    return array if shape is None else array.reshape(shape)


def _files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# ---- TensorFlow's own bytes


@pytest.mark.parametrize("case", [*CASES, *PARTITIONS])
def test_checkpoint_of_the_values_of_tensorflow_is_its_own_byte_for_byte(case: str, tmp_path: Path) -> None:
    prefix = CORPUS / case / corpus.expected(case)["prefix"]
    saved = save_tf_checkpoint(tmp_path / "m", _values(case), partitions=PARTITIONS.get(case))
    assert saved == str(tmp_path / "m")
    assert _files(tmp_path) == {
        "m.index": Path(f"{prefix}.index").read_bytes(),
        "m.data-00000-of-00001": Path(f"{prefix}.data-00000-of-00001").read_bytes(),
    }


@pytest.mark.parametrize("name", [name for name in BY_TORCH_NAME if hasattr(torch, name)])
def test_tensor_of_any_dtype_is_stored_as_its_own(name: str, tmp_path: Path) -> None:
    dtype = getattr(torch, name)
    tensor = torch.tensor([[0, 1], [1, 0], [1, 1]]).to(dtype)
    prefix = save_tf_checkpoint(tmp_path / "m", {"v": tensor})
    entry = bundles.entries(f"{prefix}.index")[b"v"]
    assert entry["dtype"] == BY_TORCH_NAME[name].number
    assert bundles.shape(entry["shape"]) == [3, 2]
    assert bundles.stored(prefix) == {b"v": raw(tensor)}


def test_every_dtype_that_torch_and_tensorflow_have_is_stored() -> None:
    numbers = {each.number for each in BY_TORCH_NAME.values()}
    assert numbers == {1, 2, 3, 4, 5, 6, 8, 9, 10, 14, 17, 18, 19, 22, 23, 24, 25, 26, 28}


def test_views_parameters_and_conjugates_are_stored_as_they_look(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "transposed": base.T,
        "expanded": base[:1].expand(5, 4),
        "stepped": base[::2, 1::2],
        "parameter": torch.nn.Parameter(base),
        "scalar": base[1, 2],
        "conj": torch.tensor([1 + 2j]).conj(),
        "negative": torch.tensor([1 + 2j]).conj().imag,
    }
    prefix = save_tf_checkpoint(tmp_path / "m", tensors)
    assert bundles.stored(prefix) == {key.encode(): raw(tensor) for key, tensor in tensors.items()}


def test_strings_of_any_shape_are_stored(tmp_path: Path) -> None:
    values = {
        "scalar": np.array(b"one", object),
        "matrix": strings([b"a", b"\x00", b"", b"\xff" * 300], (2, 2)),
        "turned": strings([b"a", b"b", b"c", b"d"], (2, 2)).T,
        "none": strings([]),
        "numpy": strings([np.bytes_(b"x")]),
    }
    prefix = save_tf_checkpoint(tmp_path / "m", values)
    found = bundles.stored(prefix)
    assert found == {
        b"scalar": b"one",
        b"matrix": b"a\x00" + b"\xff" * 300,
        b"turned": b"acbd",
        b"none": b"",
        b"numpy": b"x",
    }
    entries = bundles.entries(f"{prefix}.index")
    assert {entries[key]["dtype"] for key in found} == {STRING.number}
    assert {key: bundles.shape(entries[key]["shape"]) for key in found} == {
        name.encode(): list(value.shape) for name, value in values.items()
    }


def test_data_is_in_the_order_of_the_mapping(tmp_path: Path) -> None:
    prefix = save_tf_checkpoint(tmp_path / "m", {"b": torch.zeros(3), "c": torch.zeros(2), "a": torch.zeros(1)})
    entries = bundles.entries(f"{prefix}.index")
    assert [entries[key]["offset"] for key in (b"b", b"c", b"a")] == [0, 12, 20]


@given(st.dictionaries(st.binary(min_size=1, max_size=12), st.integers(0, 5), min_size=1, max_size=12))
def test_names_of_any_bytes_come_back(tmp_path_factory: pytest.TempPathFactory, sizes: Mapping[bytes, int]) -> None:
    tensors = {os.fsdecode(name): torch.arange(float(size)) for name, size in sizes.items()}
    prefix = save_tf_checkpoint(tmp_path_factory.getbasetemp() / "names" / "m", tensors, overwrite=True)
    assert bundles.stored(prefix) == {name: raw(torch.arange(float(size))) for name, size in sizes.items()}


def test_save_is_on_the_device_before_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = install(monkeypatch)
    save_tf_checkpoint(tmp_path / "m", {"v": torch.zeros(3)})
    assert disk.synced[0] == "file"  # the data
    assert disk.synced[-1] == "directory"
    assert disk.synced.count("file") == 2


# ---- partitions


@pytest.mark.parametrize(
    ("size", "count", "lengths"), [(11, 4, [3, 3, 3, 2]), (8, 4, [2] * 4), (5, 5, [1] * 5), (7, 2, [4, 3]), (0, 1, [0])]
)
def test_dimension_is_cut_as_tensorflow_does_with_the_larger_parts_first(
    size: int, count: int, lengths: list[int], tmp_path: Path
) -> None:
    prefix = save_tf_checkpoint(tmp_path / "m", {"v": torch.arange(float(size))}, partitions={"v": [count]})
    entries = bundles.entries(f"{prefix}.index")
    found = [parse_slice(each)[0] for each in entries[b"v"]["slices"]] or [Range(0, size)]
    assert [each.length for each in found] == lengths
    assert [each.start for each in found] == [sum(lengths[:n]) for n in range(count)]


def test_parts_along_several_dimensions_have_their_values(tmp_path: Path) -> None:
    whole = torch.arange(5 * 4 * 3.0).reshape(3, 4, 5).transpose(0, 2)
    prefix = save_tf_checkpoint(tmp_path / "m", {"v": whole}, partitions={"v": [2, 1, 3]})
    slices = [parse_slice(each) for each in bundles.entries(f"{prefix}.index")[b"v"]["slices"]]
    assert len(slices) == 6
    wanted = {
        slice_key(b"v", each): raw(whole[tuple(slice(r.start, r.start + r.length) for r in each)]) for each in slices
    }
    assert bundles.stored(prefix) == wanted


def test_strings_and_conjugates_are_partitioned_too(tmp_path: Path) -> None:
    values = {"s": strings([b"a", b"bb", b"ccc"]), "c": torch.nn.Parameter(torch.tensor([1 + 1j, 2 + 2j])).conj()}
    prefix = save_tf_checkpoint(tmp_path / "m", values, partitions={"s": [2], "c": [2]})
    assert bundles.stored(prefix) == {
        slice_key(b"s", [Range(0, 2)]): b"abb",
        slice_key(b"s", [Range(2, 1)]): b"ccc",
        slice_key(b"c", [Range(0, 1)]): raw(torch.tensor([1 - 1j])),
        slice_key(b"c", [Range(1, 1)]): raw(torch.tensor([2 - 2j])),
    }


@pytest.mark.parametrize(("shape", "counts"), [((3, 4), [1, 1]), ((), []), ((0, 3), (1, 1))])
def test_variable_in_one_part_is_an_ordinary_tensor(shape: Any, counts: Any, tmp_path: Path) -> None:
    prefix = save_tf_checkpoint(tmp_path / "m", {"v": torch.zeros(shape)}, partitions={"v": counts})
    other = save_tf_checkpoint(tmp_path / "n", {"v": torch.zeros(shape)})
    assert Path(f"{prefix}.index").read_bytes() == Path(f"{other}.index").read_bytes()


# ---- several data files


def test_max_shard_bytes_cuts_between_tensors_and_parts(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(4), "b": torch.ones(8, 2), "c": torch.zeros(100)}
    prefix = save_tf_checkpoint(tmp_path / "m", tensors, partitions={"b": [4, 1]}, max_shard_bytes=32)
    sizes = [len(data) for name, data in sorted(_files(tmp_path).items()) if "data" in name]
    assert sizes == [32, 32, 16, 400]
    assert bundles.entries(f"{prefix}.index")[b""]["num_shards"] == 4
    parts = {slice_key(b"b", [Range(n, 2), Range(0, 2)]): raw(torch.ones(2, 2)) for n in (0, 2, 4, 6)}
    assert bundles.stored(prefix) == {b"a": bytes(16), b"c": bytes(400), **parts}


@pytest.mark.parametrize(("given", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_max_shard_bytes_that_is_none_is_refused(given: Any, error: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(error, match="max_shard_bytes is"):
        save_tf_checkpoint(tmp_path / "m", {"v": torch.zeros(1)}, max_shard_bytes=given)


def test_more_data_files_than_have_names_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchsaver.formats.tensorflow.bundle_writer.MOST_SHARDS", 2)
    with pytest.raises(ValueError, match="makes 3 data files"):
        save_tf_checkpoint(tmp_path / "m", {key: torch.zeros(1) for key in "abc"}, max_shard_bytes=1)
    assert _files(tmp_path) == {}


# ---- what is refused


class _Elsewhere(torch.Tensor):
    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return NotImplemented


REFUSED: list[tuple[Any, str]] = [
    (torch.zeros(2, device="meta"), "meta device"),
    (torch.zeros(2).to_sparse(), "only dense tensors"),
    (torch.nn.parameter.UninitializedParameter(), "lazy parameter"),
    (torch.zeros(2).as_subclass(_Elsewhere), "gather it first"),
    (torch.zeros((1,) * 65), "65 dimensions"),
    (None, "NoneType"),
    (3.0, "float"),
    (b"text", "bytes"),
    (["a"], "list"),
    (np.zeros(2), "torch.from_numpy"),
    (np.array([b"a"]), "dtype object"),
    (np.array(["a"]), "dtype object"),
    (strings([b"a", "b"]), "encode"),  # type: ignore[list-item]
    (strings([b"a", 3, None]), "NoneType, int"),  # type: ignore[list-item]
    (strings([bytearray(b"a")]), "bytearray"),  # type: ignore[list-item]
    *(
        (torch.zeros(4, dtype=torch.uint8).view(getattr(torch, name)), f"{name}, which TensorFlow's")
        for name in ("float8_e8m0fnu", "float4_e2m1fn_x2")
        if hasattr(torch, name)
    ),
]


@pytest.mark.parametrize(("value", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_value_that_cannot_be_stored_is_refused_with_its_name(value: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(VarListError, match=reason) as raised:
        save_tf_checkpoint(tmp_path / "new" / "m", {"the/key": value})
    assert "'the/key'" in raised.value.problems[0]
    assert _files(tmp_path) == {}


@pytest.mark.parametrize(
    ("key", "reason"), [("", "is empty"), (3, "keys are str"), (b"a", "keys are str"), ("\ud800", "stands for no byte")]
)
def test_key_that_no_checkpoint_has_is_refused(key: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(VarListError, match=reason) as raised:
        save_tf_checkpoint(tmp_path / "m", {key: torch.zeros(1)})
    assert isinstance(raised.value, VarListTypeError) == ("keys are" in reason)


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ([2], "has 1 numbers, and the tensor 2 dimensions"),
        ([2, 1, 1], "3 numbers"),
        ([0, 1], r"from \[1, ..\] to \[6, 3\]"),
        ([-1, 1], r"to \[6, 3\]"),
        ([7, 1], r"to \[6, 3\]"),
        ([2.0, 1], "integers"),
        ([True, 1], "integers"),
        (2, "integers"),
        ("21", "integers"),
    ],
)
def test_partition_that_does_not_fit_is_refused(counts: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(VarListError, match=reason):
        save_tf_checkpoint(tmp_path / "m", {"v": torch.zeros(6, 3)}, partitions={"v": counts})


def test_partition_of_more_parts_than_are_read_back_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VarListError, match="10000 parts"):
        save_tf_checkpoint(tmp_path / "m", {"v": torch.zeros(10000)}, partitions={"v": [10000]})


@pytest.mark.parametrize("given", [[("a", torch.zeros(1))], None, torch.nn.Linear(1, 1)])
def test_tensors_that_are_no_mapping_are_refused(given: Any, tmp_path: Path) -> None:
    with pytest.raises(VarListTypeError, match="a mapping by name was wanted"):
        save_tf_checkpoint(tmp_path / "m", given)


def test_partitions_that_are_no_mapping_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VarListTypeError, match="partitions is a list"):
        save_tf_checkpoint(tmp_path / "m", {"v": torch.zeros(1)}, partitions=[1])  # type: ignore[arg-type]


def test_every_problem_is_told_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    tensors = {"": torch.zeros(1), "a": None, "b": torch.zeros(2, device="meta"), "c": torch.zeros(3), "d": np.zeros(1)}
    with pytest.raises(VarListTypeError) as raised:
        save_tf_checkpoint(tmp_path / "m", tensors, partitions={"c": [4], "x": [1]})  # type: ignore[arg-type]
    assert len(raised.value.problems) == 6
    assert _files(tmp_path) == {}


def test_nothing_to_save_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VarListError, match="nothing to save"):
        save_tf_checkpoint(tmp_path / "m", {})


@pytest.mark.parametrize("partitioned", [[], ["é"], ["\udcc3\udca9"]])
def test_two_spellings_of_one_name_are_refused(partitioned: list[str], tmp_path: Path) -> None:
    tensors = {"é": torch.zeros(2), "\udcc3\udca9": torch.zeros(2)}
    with pytest.raises(VarListError, match="the same key in the index, 'é'"):
        save_tf_checkpoint(tmp_path / "m", tensors, partitions={key: [2] for key in partitioned})


@pytest.mark.parametrize("first", ["v", "like"])
def test_name_like_the_key_of_a_slice_is_refused(first: str, tmp_path: Path) -> None:
    like = os.fsdecode(slice_key(b"v", [Range(0, 2)]))
    names = ["v", like] if first == "v" else [like, "v"]
    with pytest.raises(VarListError, match="rename one"):
        save_tf_checkpoint(tmp_path / "m", dict.fromkeys(names, torch.zeros(4)), partitions={"v": [2]})


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("new/", "no file name"),
        ("", "no file name"),
        ("m.index", "leave .index off"),
        ("m.meta", "leave .meta off"),
        ("m.data-00000-of-00001", "leave .data-00000-of-00001 off"),
    ],
)
def test_prefix_that_is_no_name_for_a_checkpoint_is_refused(path: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        save_tf_checkpoint(path, {"v": torch.zeros(1)})


def test_prefix_may_be_bytes_or_a_path_and_is_no_number(tmp_path: Path) -> None:
    assert save_tf_checkpoint(os.fsencode(tmp_path / "a"), {"v": torch.zeros(1)}) == str(tmp_path / "a")
    with pytest.raises(TypeError, match="save_path is a path"):
        save_tf_checkpoint(3, {"v": torch.zeros(1)})  # type: ignore[arg-type]


# ---- what is there


def test_checkpoint_that_is_there_is_kept_unless_overwrite(tmp_path: Path) -> None:
    prefix = save_tf_checkpoint(tmp_path / "m", {"v": torch.zeros(1)})
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_tf_checkpoint(prefix, {"v": torch.ones(1)})
    assert bundles.stored(prefix) == {b"v": bytes(4)}
    save_tf_checkpoint(prefix, {"v": torch.ones(1)}, overwrite=True)
    assert bundles.stored(prefix) == {b"v": raw(torch.ones(1))}


def test_checkpoint_of_tensorflow_is_replaced_as_ours_is(tmp_path: Path) -> None:
    for name in ("m.index", "m.data-00000-of-00001"):
        (tmp_path / name).write_bytes((CORPUS / "strings_v2" / name).read_bytes())
    save_tf_checkpoint(tmp_path / "m", {"v": torch.ones(1)}, overwrite=True)
    assert sorted(_files(tmp_path)) == ["m.data-00000-of-00002", "m.data-00001-of-00002", "m.index"]
    assert bundles.stored(str(tmp_path / "m")) == {b"v": raw(torch.ones(1))}


PROGRAM = """
import re, sys, torch
from torchsaver.tf_saving import save_tf_checkpoint
MB = 1 << 20

def mb(name):
    with open("/proc/self/status") as status:
        return int(re.search(name + r":\\s+(\\d+) kB", status.read())[1]) / 1024

save_tf_checkpoint(sys.argv[1], {"x": torch.ones(1)})
whole = torch.full((256, 1024, 256), 3.0)  # 256 MB
value = whole.transpose(0, 2) if sys.argv[2] == "transposed" else whole
with open("/proc/self/clear_refs", "w") as refs:
    refs.write("5")  # the peak is counted from here
before = mb("VmRSS")
partitions = {"w": [7, 1, 1]} if sys.argv[2] == "partitioned" else None
save_tf_checkpoint(sys.argv[1], {"w": value}, partitions=partitions, overwrite=True)
print(mb("VmHWM") - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="only Linux tells the peak of memory anew")
@pytest.mark.parametrize("kind", ["whole", "transposed", "partitioned"])
def test_peak_memory_above_the_tensors_is_bounded(kind: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "m"), kind]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(printed) < 64

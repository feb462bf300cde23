"""What must hold for every file of TensorFlow's there is, through every door: a documented error, or right values.

Values are right if they are those that were put in, where nothing was damaged, and the bytes that the index and the
data files have, by a second and simpler reading, where something was. No document takes over 2 s or 500 MB.
"""

from __future__ import annotations

import base64
import json
import os
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from faults.fuzz.places import DOCUMENTED, place
from faults.fuzz.tensorflow_documents import stored_texts
from formats import bundles

import torchsaver as ts
from torchsaver import transfer
from torchsaver.errors import CheckpointKeyError, TorchSaverError, UnsupportedCheckpointError
from torchsaver.formats.checksum import crc32c
from torchsaver.formats.regular_file import RegularFile
from torchsaver.formats.tensor_bytes import byte_view
from torchsaver.formats.tensorflow.data_types import DATA_TYPES, STRING
from torchsaver.formats.tensorflow.object_graph import ObjectGraph, parse_object_graph
from torchsaver.formats.tensorflow.slices import parse_slice, slice_key
from torchsaver.formats.tensorflow.sstable import masked, read_table
from torchsaver.formats.tensorflow.stored_value import key_bytes, key_text
from torchsaver.formats.tensorflow.wire import Schema, parse_message
from torchsaver.inspection.description import describe_checkpoint
from torchsaver.open_checkpoint import open_checkpoint
from torchsaver.reader import CheckpointReader

MOST_SECS = 2  # of the process's own time
MOST_MB = 500  # more than what there was before
_HEADER = Schema({1: ("num_shards", "int64"), 2: ("endianness", "int64")})
_SAVED_META = Schema({1: ("meta", "bytes")})
_SAVED_SLICE = Schema({2: ("data", "bytes")})
_META = Schema({1: ("tensors", "bytes*")})
_TENSOR = Schema({1: ("name", "bytes"), 4: ("slices", "bytes*")})
_SLICE = Schema({1: ("name", "bytes"), 2: ("slice", "bytes")})


def _within_limits(check: Callable[[bytes], bool]) -> Callable[[bytes], bool]:
    """Return a check that also fails when it takes much time or memory."""

    def limited(data: bytes) -> bool:
        started, before = time.process_time(), _peak_mb()
        taken = check(data)
        secs, grown = time.process_time() - started, _peak_mb() - before
        assert secs <= MOST_SECS, f"it took {secs:.1f} s"
        assert grown <= MOST_MB, f"it took {grown:.0f} MB"
        return taken

    return limited


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@_within_limits
def check_checkpoint(data: bytes) -> bool:
    """A bundle, or a V1 checkpoint, as `tensorflow_documents` makes them."""
    document = json.loads(data)
    files = {name: base64.b64decode(content) for name, content in document["files"].items()}
    prefix = _laid_out(files)
    try:
        with ts.load_checkpoint(prefix) as reader:
            keys = reader.keys()
            values = {key: _attempt(reader.get_tensor, key) for key in keys}
            is_verified = not isinstance(_attempt(reader.verify), TorchSaverError)
            _check_doors(reader, values)
    except DOCUMENTED:
        assert "wanted" not in document
        return False
    _check_other_doors(prefix, values, is_verified=is_verified)
    if f"{prefix}.index" in _paths(prefix):
        _check_against_index(prefix, values)
    else:
        _check_against_records(prefix, values)
    if "wanted" in document:
        _check_wanted(document["wanted"], values)
        assert is_verified
    return not any(isinstance(value, Exception) for value in values.values())


def _laid_out(files: dict[str, bytes]) -> str:
    """Write the files into an empty directory, and return the prefix of the checkpoint."""
    directory = place().path + "/tensorflow"
    os.makedirs(directory, exist_ok=True)
    for name in set(os.listdir(directory)) - set(files):
        os.unlink(f"{directory}/{name}")
    for name, content in files.items():
        with open(f"{directory}/{name}", "wb", buffering=0) as file:
            file.write(content)
    return f"{directory}/m-?????-of-00002" if "m-00000-of-00002" in files else f"{directory}/m"


def _paths(prefix: str) -> list[str]:
    directory = os.path.dirname(prefix)
    return [f"{directory}/{name}" for name in os.listdir(directory)]


def _attempt(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a call comes to, or the documented error it ends in."""
    try:
        return function(*arguments)
    except DOCUMENTED as error:
        return error


def _check_doors(reader: CheckpointReader, values: dict[str, Any]) -> None:
    """What an open reader says otherwise agrees with the values it has given."""
    shapes = _attempt(reader.get_variable_to_shape_map)
    dtypes = _attempt(reader.get_variable_to_dtype_map)
    _attempt(reader.debug_string)
    for key, value in values.items():
        if isinstance(value, Exception):
            continue
        assert isinstance(shapes, Exception) or shapes[key] == list(value.shape)
        assert isinstance(dtypes, Exception) or dtypes[key] == value.dtype
        if value.ndim and value.shape[0]:
            rows = reader.get_slice(key)[:1]
            assert _raw(rows) == _raw(value[:1])
    graph = _attempt(reader.object_graph)
    for name in ("w", "dense/kernel", "w/w/w", "..", "no/such"):
        _attempt(reader.has_tensor, name)
    if isinstance(graph, ObjectGraph):
        _use_graph(graph)
    assert isinstance(_attempt(reader.get_tensor, "no such key at all"), (CheckpointKeyError, TorchSaverError))


def _raw(value: Any) -> Any:
    return value.ravel().tolist() if isinstance(value, np.ndarray) else bytes(byte_view(value.contiguous()))


def _check_other_doors(prefix: str, values: dict[str, Any], *, is_verified: bool) -> None:
    """Verifying, describing and planning agree with reading, or end in documented errors."""
    report = ts.verify_checkpoint(prefix)
    failed = [value for value in values.values() if isinstance(value, Exception)]
    if report.verdict == "valid":
        assert is_verified
        assert all(isinstance(value, UnsupportedCheckpointError) for value in failed)
    elif is_verified:
        assert failed, report
    with open_checkpoint(prefix) as checkpoint:
        _attempt(describe_checkpoint, checkpoint)
        for key in values:
            _attempt(describe_checkpoint, checkpoint, key)
    dense = torch.nn.Linear(2, 3)
    for assignment_map in ({"dense/": transfer.from_tf(dense)}, {"w": torch.zeros(2)}, dense):
        try:
            assert str(transfer.plan_transfer(prefix, assignment_map))
        except DOCUMENTED:
            continue
        except ValueError as error:
            assert "both have a value" in str(error)  # noqa: PT017  # two keys that from_tf has one variable for
    target = torch.full((2,), 7.0)
    if isinstance(_attempt(ts.Saver({"w": target}).restore, prefix), Exception):
        assert (target == 7).all()


def _check_wanted(wanted: dict[str, Any], values: dict[str, Any]) -> None:
    assert set(values) == set(wanted)
    for key, (number, shape, content) in wanted.items():
        value, data_type = values[key], DATA_TYPES[number]
        assert not isinstance(value, Exception), (key, value)
        assert list(value.shape) == shape
        if data_type == STRING:
            assert _raw(value) == [bytes.fromhex(text) for text in content]
        elif data_type.stored:
            assert _raw(value) == bytes.fromhex(content), key


def _check_against_index(prefix: str, values: dict[str, Any]) -> None:
    """Numbers of torch's own bytes are those where the index says, and have its checksum."""
    table = dict(read_table(RegularFile(f"{prefix}.index")))
    header = parse_message(table[b""], _HEADER)
    for key, value in values.items():
        name = key_bytes(key)
        if isinstance(value, Exception) or name not in table or header["endianness"]:
            continue
        entry = parse_message(table[name], bundles.ENTRY)
        if DATA_TYPES[entry["dtype"]].stored:
            assert _raw(value) == _second_reading(prefix, header["num_shards"], table, name), key
        elif entry["dtype"] == STRING.number and not entry["slices"]:
            assert masked(stored_texts(_raw(value))[1]) == entry["crc32c"]


def _second_reading(prefix: str, count: int, table: dict[bytes, bytes], name: bytes) -> bytes:
    entry = parse_message(table[name], bundles.ENTRY)
    if not entry["slices"]:
        with open(f"{prefix}.data-{entry['shard']:05d}-of-{count:05d}", "rb") as file:
            file.seek(entry["offset"])
            data = file.read(entry["size"])
        assert len(data) == entry["size"]
        assert masked(crc32c(data)) == entry["crc32c"]
        return data
    whole = np.zeros(bundles.shape(entry["shape"]), f"V{DATA_TYPES[entry['dtype']].item_bytes}")
    written = np.zeros(whole.shape, int)
    for each in entry["slices"]:
        ranges = parse_slice(each)
        part = np.frombuffer(_second_reading(prefix, count, table, slice_key(name, ranges)), whole.dtype)
        index = tuple(slice(r.start, None if r.length < 0 else r.end) for r in ranges)
        whole[index] = part.reshape(whole[index].shape)
        written[index] += 1
    assert (written == 1).all()
    return whole.tobytes()


def _check_against_records(prefix: str, values: dict[str, Any]) -> None:
    """The records of a V1 checkpoint that values have come from are those of their tensor and slice."""
    for path in _paths(prefix):
        table = _attempt(lambda path=path: dict(read_table(RegularFile(path))))
        if isinstance(table, Exception):
            continue  # of which the values may have been in other blocks
        meta = parse_message(parse_message(table[b""], _SAVED_META)["meta"], _META)
        for tensor in (parse_message(each, _TENSOR) for each in meta["tensors"]):
            if isinstance(values.get(key_text(tensor["name"]), OSError()), Exception):
                continue
            for ranges in map(parse_slice, tensor["slices"]):
                record = parse_message(table[slice_key(tensor["name"], ranges)], _SAVED_SLICE)["data"]
                saved = parse_message(record, _SLICE)
                assert (saved["name"], parse_slice(saved["slice"])) == (tensor["name"], ranges)


@_within_limits
def check_graph(data: bytes) -> bool:
    """An object graph: what is taken is searched in every way, and finds nothing that is not there."""
    try:
        graph = parse_object_graph(data)
    except ValueError:
        return False
    _use_graph(graph)
    return True


def _use_graph(graph: ObjectGraph) -> None:
    for key, value in list(graph.keys.items())[:50]:
        assert graph.find(key) == key
        for name in (value.path, value.full_name, f"{value.path}/{value.attribute}"):
            found = None if name is None else graph.find(name)
            assert found is None or found in graph.keys
    for slot in graph.slots[:50]:
        assert slot.key is None or slot.key in graph.keys
    for path in ("", "w", "w/w", "w/w/w/w/w", "dense", "with/slash", "..", "a.b"):
        for name in graph.child_names(path)[:20]:
            graph.find(f"{path}/{name}")

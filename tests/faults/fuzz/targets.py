"""What must hold for every file there is: a documented error, or values that are right and come back the same.

A target takes a document's bytes and returns whether they were taken for a checkpoint. Anything else than a documented
error is the fuzzer's: it leaves the target as it is.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import safetensors
import torch
from faults.fuzz import documents, tensorflow_documents
from faults.fuzz.choices import Choices
from faults.fuzz.places import DOCUMENTED, place
from faults.fuzz.tensorflow_targets import check_checkpoint, check_graph
from formats.builders import canonical, file_bytes, raw

from torchsaver.formats.file_layout import TensorSpec
from torchsaver.formats.manifest import Manifest, format_manifest, parse_manifest
from torchsaver.formats.shard_index import format_index, parse_index
from torchsaver.formats.text_proto import TextProtoError
from torchsaver.reader import CheckpointReader
from torchsaver.recovery import newest_valid_checkpoint
from torchsaver.storage.state_file import format_state, get_checkpoint_state, latest_checkpoint, parse_state


@dataclass(frozen=True)
class Target:
    """One reader under fuzzing: what makes its documents, and what checks one."""

    make: Callable[[Choices], bytes]
    check: Callable[[bytes], bool]
    is_json: bool = False  # a document of several files, in which a fuzzer's own bytes would be none


def check_safetensors(data: bytes) -> bool:
    """A file of ours or anyone's: values agree with safetensors' own reader, and survive a rewrite."""
    path = place().put("file.safetensors", data)
    try:
        with CheckpointReader(path) as reader:
            reader.verify()
            tensors = {key: reader.get_tensor(key) for key in reader.keys()}
            maps = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map(), reader.debug_string()
            specs = reader.files[0].specs
            manifest, ours = reader.manifest, reader.files[0].has_checksums
    except DOCUMENTED:
        return False
    assert set(tensors) <= set(maps[0]) == set(maps[1])
    assert all(list(tensor.shape) == maps[0][key] for key, tensor in tensors.items())
    _check_as_safetensors(data, tensors, specs)
    if ours and zlib.crc32(data) % 4 == 0:
        with contextlib.suppress(UnicodeEncodeError):  # a lone surrogate, which we do not write
            _check_rewritten(tensors, manifest)
    return True


def _check_as_safetensors(data: bytes, tensors: dict[str, torch.Tensor], specs: dict[str, TensorSpec]) -> None:
    """Whatever we take, safetensors' own reader takes, and it finds the same there."""
    theirs = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
    assert set(theirs) == set(specs)
    for key, tensor in tensors.items():
        assert bytes(theirs[key]["data"]) == raw(tensor), key
        assert theirs[key]["dtype"].upper() == specs[key].dtype.upper(), key
        assert tuple(theirs[key]["shape"]) == specs[key].shape, key


def _check_rewritten(tensors: dict[str, torch.Tensor], manifest: Manifest) -> None:
    with CheckpointReader(place().put("again.safetensors", file_bytes(tensors, manifest))) as again:
        assert again.keys() == sorted(tensors)
        assert all(raw(again.get_tensor(key)) == raw(tensor) for key, tensor in tensors.items())
        assert again.manifest == manifest


_CONTENT = canonical(documents.MANIFEST_CONTENT).encode()


def check_manifest(data: bytes) -> bool:
    """A manifest: what is taken is written and read back the same."""
    try:
        text = data.decode("utf-8", "surrogatepass")
        manifest, _ = parse_manifest(text, _CONTENT, {"a"}, "p")
    except (*DOCUMENTED, UnicodeDecodeError):
        return False
    again, _ = format_manifest(manifest, _CONTENT)
    assert parse_manifest(again, _CONTENT, {"a"}, "p")[0] == manifest
    return True


def check_index(data: bytes) -> bool:
    """A shard index: names stay beside it, and what is taken is written and read back the same."""
    try:
        weight_map, manifest = parse_index(data, "p")
    except DOCUMENTED:
        return False
    assert not any("/" in name or name in ("", ".", "..") for name in weight_map.values())
    if manifest == Manifest():
        again = format_index(weight_map, 8, Manifest(shards=dict.fromkeys(weight_map.values(), 1)))
        assert parse_index(again, "p")[0] == weight_map
    else:
        with contextlib.suppress(UnicodeEncodeError):  # a lone surrogate, which we do not write
            assert parse_index(format_index(weight_map, 8, manifest), "p") == (weight_map, manifest)
    return True


def check_state(data: bytes) -> bool:
    """A state file: what is taken is written and read back the same."""
    try:
        plain = parse_state(data.decode("utf-8"))
    except (TextProtoError, UnicodeDecodeError):
        return False
    text = format_state(plain)
    again = parse_state(text)
    assert repr(again) == repr(plain)  # repr: nan equals nan
    return True


def check_state_file(data: bytes) -> bool:
    """A state file in its directory: the newest checkpoint is the one it names, or none."""
    directory = place().path
    place().put("checkpoint", data)
    try:
        state = get_checkpoint_state(directory)
        newest = latest_checkpoint(directory)
    except DOCUMENTED:
        return False
    assert newest is None or (state is not None and newest == state.model_checkpoint_path)
    return state is not None


def check_directory(data: bytes) -> bool:
    """A directory of anything: what is found stands in it and can be read whole."""
    directory = place().path + "/directory"
    os.makedirs(directory, exist_ok=True)
    files = json.loads(data)
    for name in documents.DIRECTORY_FILES:
        path = f"{directory}/{name}"
        if name in files:
            with open(path, "wb", buffering=0) as file:
                file.write(base64.b64decode(files[name]))
        elif os.path.exists(path):
            os.unlink(path)
    try:
        found = newest_valid_checkpoint(directory)
    except DOCUMENTED:
        return False
    if found is None:
        return False
    assert os.path.dirname(found) == directory
    with CheckpointReader(found) as reader:
        reader.verify()
        for key in reader.keys():
            reader.get_tensor(key)
    return True


TARGETS = {
    "safetensors": Target(documents.safetensors_document, check_safetensors),
    "manifest": Target(documents.manifest_document, check_manifest),
    "index": Target(documents.index_document, check_index),
    "state": Target(documents.state_document, check_state),
    "statefile": Target(documents.state_document, check_state_file),
    "directory": Target(documents.directory_document, check_directory, is_json=True),
    "tfbundle": Target(tensorflow_documents.bundle_document, check_checkpoint, is_json=True),
    "tfv1": Target(tensorflow_documents.v1_document, check_checkpoint, is_json=True),
    "tfgraph": Target(tensorflow_documents.graph_document, check_graph),
}


def quiet() -> None:
    """Leave warnings out: a fuzzer would have millions."""
    logging.getLogger("torchsaver").addHandler(logging.NullHandler())
    logging.getLogger("torchsaver").propagate = False
    logging.getLogger("torchsaver").setLevel(logging.CRITICAL)

"""The index of a sharded checkpoint, in the Hugging Face layout: which file holds which key.

    {"metadata": {"total_size": BYTES, "torchsaver": MANIFEST}, "weight_map": {KEY: FILE NAME, ...}}

Shards stand beside the index. `torchsaver` is a text as in a safetensors file; its `shards` holds each shard's header
checksum, so that shards of two saves are never taken for one checkpoint. A third party's index has none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from torchsaver.errors import CorruptCheckpointError
from torchsaver.formats.json_text import (
    MAX_TEXT_BYTES,
    canonical_json,
    is_unicode,
    parse_json,
    why_too_large,
    why_too_long,
)
from torchsaver.formats.manifest import MANIFEST_KEY, Manifest, format_manifest, parse_manifest

MAX_INDEX_BYTES = MAX_TEXT_BYTES


def format_index(weight_map: Mapping[str, str], total_bytes: int, manifest: Manifest) -> bytes:
    """Return the index's bytes for {key: shard file name}; `total_bytes` is the size of all tensors.

    Raises:
        ValueError: They would be over a limit of the reader.
    """
    text, _ = format_manifest(manifest, _content(weight_map, total_bytes))
    index = {"metadata": {"total_size": total_bytes, MANIFEST_KEY: text}, "weight_map": dict(weight_map)}
    whole = json.dumps(index, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    data = whole.encode("utf-8")
    if (reason := why_too_long(data) or why_too_large(whole)) is not None:  # the manifest in it takes less
        raise ValueError(f"the index could not be read back: {reason}; save fewer keys or less metadata")
    return data


def parse_index(data: bytes, path: str) -> tuple[dict[str, str], Manifest]:
    """Return {key: shard file name} and the manifest, an empty one for a third party's index.

    Raises:
        CorruptCheckpointError: Not an index, a checksum that differs, or a shard that is not a plain name beside it.
        UnsupportedCheckpointError: Written by a newer format version.
    """
    index = parse_json(data, path)
    weight_map, metadata = index.get("weight_map"), index.get("metadata")
    metadata = {} if metadata is None else metadata  # some write null
    if not isinstance(weight_map, dict) or not isinstance(metadata, dict):
        raise CorruptCheckpointError(path, 0, "an index has a weight_map and metadata, both objects")
    if not is_unicode("".join(weight_map)):
        raise CorruptCheckpointError(path, 0, "a key holds a lone surrogate")
    for key, name in weight_map.items():
        if not _is_plain_name(name):
            raise CorruptCheckpointError(
                path, 0, f"{key!r} is in {name!r}; a shard is a file beside its index, by name"
            )
    if MANIFEST_KEY not in metadata:
        if b"header_crc32c" in data:
            raise CorruptCheckpointError(path, 0, "the manifest has lost its name")
        return weight_map, Manifest()
    content = _content(weight_map, metadata.get("total_size"))
    manifest, _ = parse_manifest(str(metadata[MANIFEST_KEY]), content, set(), path)
    if set(manifest.shards) != set(weight_map.values()):
        raise CorruptCheckpointError(path, 0, "the shards named are not those the keys are in")
    return weight_map, manifest


def _content(weight_map: Mapping[str, str], total_bytes: Any) -> bytes:
    """Return what the manifest's checksum covers of the index."""
    content = {"weight_map": dict(weight_map), "total_size": total_bytes}
    return canonical_json(content).encode("utf-8", "surrogatepass")


def _is_plain_name(name: Any) -> bool:
    separators = [separator for separator in (os.sep, os.altsep, "/", "\0") if separator]
    if not isinstance(name, str) or name in ("", ".", "..") or not is_unicode(name):
        return False
    return not any(separator in name for separator in separators)

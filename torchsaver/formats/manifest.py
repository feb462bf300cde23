"""What torchsaver adds to a safetensors file: one metadata string, `torchsaver`, of canonical JSON.

    {"format_version": 1, "header_crc32c": "........", "crc32c": {KEY: "........"}, "time": .., "versions": {..},
     "global_step": ..?, "aliases": {ALIAS: KEY}?, "complex128": [KEY]?, "objects": {..}?, "metadata": ..?,
     "shards": {NAME: "........"}?, "commit": {..}?}

`crc32c` covers each tensor's bytes. `header_crc32c` covers everything else that has a meaning: this manifest without
that field, and every key with its dtype and shape; it does not cover the layout, so that a faithful rewrite by another
tool stays valid. Checksums have a fixed width, so a header's length is known before the data has streamed by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import torch

from torchsaver.errors import CorruptCheckpointError, UnsupportedCheckpointError
from torchsaver.formats.checksum import crc32c, crc32c_hex
from torchsaver.formats.commit import Commit, commit_from_json, commit_to_json
from torchsaver.formats.json_text import canonical_json, canonical_pieces, parse_json
from torchsaver.formats.safetensors_header import TensorSpec
from torchsaver.version import __version__

MANIFEST_KEY = "torchsaver"
FORMAT_VERSION = 1
_MAX_TIME = 250e9  # seconds: beyond the year 9000


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint file says of itself beside its tensors; an empty one stands for a third party's file.

    Attributes:
        global_step: The step given to `save`, or None.
        time: Seconds since the epoch when the save began.
        crc32c: CRC-32C of each tensor's bytes, by key.
        aliases: Other names of tied tensors: {alias: the key it is stored under}.
        complex128: Keys stored as F64 pairs that are complex128.
        objects: For each object, the JSON tree its tensors hang in.
        metadata: The user's own JSON value.
        shards: In an index: the header checksum of each shard file.
        commit: Where the save stands in the order of its directory; None when no state file was to list it.
    """

    global_step: int | None = None
    time: float | None = None
    crc32c: Mapping[str, int] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    complex128: frozenset[str] = frozenset()
    objects: Mapping[str, Any] = field(default_factory=dict)
    metadata: Any = None
    shards: Mapping[str, int] = field(default_factory=dict)
    commit: Commit | None = None

    def for_shard(self, keys: Iterable[str]) -> Manifest:
        """Return the manifest of one shard: what belongs to the whole stays in the index."""
        return replace(self, complex128=self.complex128 & set(keys), aliases={}, objects={}, metadata=None)


def described(specs: Iterable[TensorSpec]) -> dict[str, Any]:
    """Return the part of a header that `header_crc32c` covers: dtype and shape by key."""
    return {spec.key: [spec.dtype, list(spec.shape)] for spec in specs}


def format_manifest(manifest: Manifest, content: Any) -> tuple[str, int]:
    """Return the manifest's text and its header checksum; `content` is what else the checksum covers."""
    fields = _to_json(manifest)
    checksum = _header_crc32c(fields, content)
    return canonical_json({**fields, "header_crc32c": crc32c_hex(checksum)}), checksum


def parse_manifest(text: str, content: Any, keys: Iterable[str], path: str) -> tuple[Manifest, int]:
    """Return the manifest in `text` and its header checksum, after checking that against `content`.

    Args:
        text: The `torchsaver` metadata string.
        content: What else the header checksum covers.
        keys: The tensors that are there; every one needs a checksum, unless `shards` has them.
        path: Named in errors.

    Raises:
        CorruptCheckpointError: Damaged: the checksum differs, or a field has the wrong type.
        UnsupportedCheckpointError: Written by a newer format version.
    """
    fields = parse_json(text, path)
    version = fields.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        raise UnsupportedCheckpointError(
            path, f"format version {version} is newer than {FORMAT_VERSION}; upgrade torchsaver"
        )
    stored = fields.pop("header_crc32c", None)
    try:
        checksum = _header_crc32c(fields, content)
    except RecursionError as error:
        raise CorruptCheckpointError(path, 0, "manifest: nested too deep") from error
    if stored != crc32c_hex(checksum):
        raise CorruptCheckpointError(path, 0, f"header checksum is {crc32c_hex(checksum)}, and {stored!r} is stored")
    manifest = _from_json(fields, path)
    if not manifest.shards and manifest.crc32c.keys() != set(keys):
        _fail(path, "the checksums are not those of the tensors that are there")
    return manifest, checksum


def _header_crc32c(fields: Mapping[str, Any], content: Any) -> int:
    checksum = 0
    for piece in canonical_pieces([fields, content]):
        checksum = crc32c(piece, checksum)
    return checksum


def is_unnamed(text: str) -> bool:
    """Return whether `text` is a manifest by its looks: damage to its name must not make the file a third party's."""
    return '"header_crc32c":"' in text


def _to_json(manifest: Manifest) -> dict[str, Any]:
    fields = {
        "format_version": FORMAT_VERSION,
        "versions": {"torch": torch.__version__, "torchsaver": __version__},
        "time": manifest.time,
        "global_step": manifest.global_step,
        "crc32c": {key: crc32c_hex(value) for key, value in manifest.crc32c.items()},
        "aliases": dict(manifest.aliases),
        "complex128": sorted(manifest.complex128),
        "objects": dict(manifest.objects),
        "shards": {name: crc32c_hex(value) for name, value in manifest.shards.items()},
        "commit": None if manifest.commit is None else commit_to_json(manifest.commit),
    }
    fields = {name: value for name, value in fields.items() if value not in (None, {}, [])}
    return fields if manifest.metadata is None else {**fields, "metadata": manifest.metadata}


def _from_json(fields: Mapping[str, Any], path: str) -> Manifest:
    version, step, time = fields.get("format_version"), fields.get("global_step"), fields.get("time")
    if type(version) is not int or version < 1:
        _fail(path, f"format_version is {version!r}")
    if step is not None and type(step) is not int:
        _fail(path, f"global_step is {step!r}")
    if time is not None and (type(time) not in (int, float) or not abs(time) < _MAX_TIME):
        _fail(path, f"time is {time!r}")
    complex128 = fields.get("complex128", [])
    if not isinstance(complex128, list) or not all(isinstance(key, str) for key in complex128):
        _fail(path, "complex128 is not a list of keys")
    return Manifest(
        global_step=step,
        time=time,
        crc32c=_checksums(fields, "crc32c", path),
        aliases=_object(fields, "aliases", str, path),
        complex128=frozenset(complex128),
        objects=_object(fields, "objects", object, path),
        metadata=fields.get("metadata"),
        shards=_checksums(fields, "shards", path),
        commit=_commit(fields, path),
    )


def _checksums(fields: Mapping[str, Any], name: str, path: str) -> dict[str, int]:
    texts = _object(fields, name, str, path)
    try:
        return {key: int(text, 16) for key, text in texts.items()}
    except ValueError as error:
        raise CorruptCheckpointError(path, 0, f"manifest: {name} holds {error}") from error


def _commit(fields: Mapping[str, Any], path: str) -> Commit | None:
    try:
        return commit_from_json(fields["commit"]) if "commit" in fields else None
    except ValueError as error:
        raise CorruptCheckpointError(path, 0, f"manifest: {error}") from error


def _object(fields: Mapping[str, Any], name: str, kind: type, path: str) -> dict[str, Any]:
    value = fields.get(name, {})
    if not isinstance(value, dict) or not all(isinstance(item, kind) for item in value.values()):
        _fail(path, f"{name} is not an object of {kind.__name__}")
    return dict(value)


def _fail(path: str, reason: str) -> NoReturn:
    raise CorruptCheckpointError(path, 0, f"manifest: {reason}")

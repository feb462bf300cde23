"""What torchsaver adds to a safetensors file: one metadata string, `torchsaver`, of canonical JSON.

    {"format_version": 1, "header_crc32c": "........", "crc32c": "................"?, "time": .., "versions": {..},
     "global_step": ..?, "aliases": {ALIAS: KEY}?, "complex128": [KEY]?, "objects": {..}?, "metadata": ..?,
     "metrics": {NAME: NUMBER or "nan", "inf", "-inf"}?, "shards": {NAME: "........"}?, "commit": {..}?}

`crc32c` covers the bytes of each tensor of this file, in the order of their keys by code point. `header_crc32c` covers
everything else that has a meaning: this text without that field, and every key with its dtype and shape; it does not
cover the layout, so that a faithful rewrite by another tool stays valid. Checksums have a fixed width, so a header's
length is known before the data has streamed by.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from torchsaver.errors import CorruptCheckpointError, UnsupportedCheckpointError
from torchsaver.formats.checksum import crc32c, crc32c_hex, crc32cs_from_hex, crc32cs_hex
from torchsaver.formats.commit import Commit, commit_from_json, commit_to_json
from torchsaver.formats.json_text import canonical_json, parse_json

MANIFEST_KEY = "torchsaver"
FORMAT_VERSION = 1
_NOT_FINITE = ("nan", "inf", "-inf")  # as texts, since JSON has no such numbers
_MAX_TIME = 250e9  # seconds: beyond the year 9000
# Where the text has its own checksum. Nothing before it looks so: quotes in texts are escaped, no number has that name.
_OWN_CHECKSUM = re.compile(r'"format_version":[0-9]+(?:,"global_step":-?[0-9]+)?(,"header_crc32c":"([0-9a-f]{8})")')


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
        metrics: The user's own numbers, by name; nan and infinities too.
        shards: In an index: the header checksum of each shard file.
        commit: Where the save stands in the order of its directory; None when no state file was to list it.
        versions: Of torch and torchsaver that wrote it.
    """

    global_step: int | None = None
    time: float | None = None
    crc32c: Mapping[str, int] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    complex128: frozenset[str] = frozenset()
    objects: Mapping[str, Any] = field(default_factory=dict)
    metadata: Any = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    shards: Mapping[str, int] = field(default_factory=dict)
    commit: Commit | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def for_shard(self, keys: Iterable[str]) -> Manifest:
        """Return the manifest of one shard: what belongs to the whole stays in the index."""
        return replace(self, complex128=self.complex128 & set(keys), aliases={}, objects={}, metadata=None, metrics={})


def format_manifest(manifest: Manifest, content: bytes) -> tuple[str, int]:
    """Return the manifest's text and its header checksum; `content` is what else the checksum covers, as JSON."""
    text = canonical_json({**_to_json(manifest), "header_crc32c": crc32c_hex(0)})
    own = _OWN_CHECKSUM.search(text)
    assert own is not None, "canonical JSON has sorted keys"
    checksum = _header_crc32c(text, own, content)
    return f"{text[: own.start(2)]}{crc32c_hex(checksum)}{text[own.end(2) :]}", checksum


def parse_manifest(text: str, content: bytes, keys: Set[str], path: str) -> tuple[Manifest, int]:
    """Return the manifest in `text` and its header checksum, after checking that against `content`.

    Args:
        text: The `torchsaver` metadata string.
        content: What else the header checksum covers.
        keys: The tensors of this file; every one needs a checksum. An index has none.
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
    own = _OWN_CHECKSUM.search(text)
    if own is None:
        _fail(path, "it has no header checksum where one stands")
    checksum = _header_crc32c(text, own, content)
    if own[2] != crc32c_hex(checksum):
        raise CorruptCheckpointError(path, 0, f"header checksum is {crc32c_hex(checksum)}, and {own[2]!r} is stored")
    return _from_json(fields, keys, path), checksum


def _header_crc32c(text: str, own: re.Match[str], content: bytes) -> int:
    """Return the CRC-32C of the JSON list [the manifest without its own checksum, content]."""
    checksum = crc32c(f"[{text[: own.start(1)]}".encode("utf-8", "surrogatepass"))
    checksum = crc32c(f"{text[own.end(1) :]},".encode("utf-8", "surrogatepass"), checksum)
    return crc32c(b"]", crc32c(content, checksum))


def is_unnamed(text: str) -> bool:
    """Return whether `text` is a manifest by its looks: damage to its name must not make the file a third party's."""
    return '"header_crc32c":"' in text


def _to_json(manifest: Manifest) -> dict[str, Any]:
    fields = {
        "format_version": FORMAT_VERSION,
        "versions": dict(manifest.versions),
        "crc32c": crc32cs_hex([manifest.crc32c[key] for key in sorted(manifest.crc32c)]),
        "time": manifest.time,
        "global_step": manifest.global_step,
        "aliases": dict(manifest.aliases),
        "complex128": sorted(manifest.complex128),
        "objects": dict(manifest.objects),
        "metrics": {name: value if math.isfinite(value) else repr(value) for name, value in manifest.metrics.items()},
        "shards": {name: crc32c_hex(value) for name, value in manifest.shards.items()},
        "commit": None if manifest.commit is None else commit_to_json(manifest.commit),
    }
    fields = {name: value for name, value in fields.items() if value not in (None, {}, [], "")}
    return fields if manifest.metadata is None else {**fields, "metadata": manifest.metadata}


def _from_json(fields: Mapping[str, Any], keys: Set[str], path: str) -> Manifest:
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
        crc32c=_checksums_of_tensors(fields, keys, path),
        aliases=_object(fields, "aliases", str, path),
        complex128=frozenset(complex128),
        objects=_object(fields, "objects", object, path),
        metadata=fields.get("metadata"),
        metrics=_metrics(fields, path),
        shards=_checksums(fields, "shards", path),
        commit=_commit(fields, path),
        versions=_object(fields, "versions", str, path),
    )


def _checksums_of_tensors(fields: Mapping[str, Any], keys: Set[str], path: str) -> dict[str, int]:
    text = fields.get("crc32c", "")
    if isinstance(text, str):
        return dict(zip(sorted(keys), _from_hex(text, len(keys), "crc32c", path), strict=True))
    checksums = _checksums(fields, "crc32c", path)  # each under its key, as torchsaver wrote them at first
    if checksums.keys() != keys:
        _fail(path, "the checksums are not those of the tensors that are there")
    return checksums


def _checksums(fields: Mapping[str, Any], name: str, path: str) -> dict[str, int]:
    texts = _object(fields, name, str, path)
    if set(map(len, texts.values())) - {8}:
        _fail(path, f"{name} holds a checksum that is not eight hexadecimal digits")
    return dict(zip(texts, _from_hex("".join(texts.values()), len(texts), name, path), strict=True))


def _from_hex(text: str, count: int, name: str, path: str) -> Sequence[int]:
    try:
        return crc32cs_from_hex(text, count)
    except ValueError as error:
        raise CorruptCheckpointError(path, 0, f"manifest: {name} is {error}") from error


def _metrics(fields: Mapping[str, Any], path: str) -> dict[str, float]:
    metrics = _object(fields, "metrics", object, path)
    for name, value in metrics.items():
        if type(value) not in (int, float) and value not in _NOT_FINITE:
            _fail(path, f"the metric {name!r} is {value!r}")
    try:
        return {name: float(value) for name, value in metrics.items()}
    except OverflowError:  # an integer of hundreds of digits
        _fail(path, "a metric is beyond a float")


def _commit(fields: Mapping[str, Any], path: str) -> Commit | None:
    try:
        return commit_from_json(fields["commit"]) if "commit" in fields else None
    except ValueError as error:
        raise CorruptCheckpointError(path, 0, f"manifest: {error}") from error


def _object(fields: Mapping[str, Any], name: str, kind: type, path: str) -> dict[str, Any]:
    value = fields.get(name, {})
    if not isinstance(value, dict) or not all(issubclass(each, kind) for each in set(map(type, value.values()))):
        _fail(path, f"{name} is not an object of {kind.__name__}")
    return dict(value)


def _fail(path: str, reason: str) -> NoReturn:
    raise CorruptCheckpointError(path, 0, f"manifest: {reason}")

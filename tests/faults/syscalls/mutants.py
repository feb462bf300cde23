"""State files and shard indexes that are not what they should be, for those who trust what a file says."""

from __future__ import annotations

import json
from collections.abc import Iterator

Mutant = tuple[str, bytes]  # what it is, and the file

_PATHS = {
    "empty path": "",
    "dot": ".",
    "slash": "/",
    "dot dot": "..",
    "glob": "*",
    "percent": "%s%s%n",
    "device": "/dev/zero",
    "process memory": "/proc/self/mem",
    "URL": "http://127.0.0.1:9/x",
    "fsspec chain": "simplecache::file:///etc/passwd",
    "home": "~/canary-1",
    "parent": "../canary-1",
    "parent in octal": "\\056\\056/canary-1",
    "through a directory that is not there": "x/../../canary-1",
    "NUL": "model.ckpt-2\\000x",
    "newline": "model.ckpt-2\\n",
    "bad escapes": "\\x\\400\\u12\\q\\",
    "octal overflow": "\\777",
    "long": "a" * 100_000,
    "huge step": "model.ckpt-" + "9" * 400,
    "negative step": "model.ckpt--5",
    "digits of another script": "model.ckpt-\u0663",
    "directory that is not there": "nosuchdir/model.ckpt-2",
}


def state_files(good: bytes, canary: str) -> Iterator[Mutant]:
    """Yield state files that name other things than `good` does, and broken ones; `canary` is a prefix outside."""
    for what, path in {**_PATHS, "absolute": canary}.items():
        line = f'model_checkpoint_path: "{path}"\n'.encode()
        yield what, line
        yield f"{what}, twice", line + line.replace(b"model_", b"all_model_").replace(b"path:", b"paths:")
        yield f"{what}, before the good one", line + good
    yield from _broken(good)


def _broken(good: bytes) -> Iterator[Mutant]:
    yield "empty", b""
    yield "NULs", bytes(100)
    yield "binary", bytes(range(256)) * 4
    yield "UTF-16", good.decode().encode("utf-16")
    yield "byte order mark", b"\xef\xbb\xbf" + good
    yield "CRLF", good.replace(b"\n", b"\r\n")
    yield "no quotes", good.replace(b'"', b"")
    yield "number", b"model_checkpoint_path: 5\n"
    yield "unknown field", good + b'evil: "x"\n'
    yield "nested", good + b"evil { a: 1 b { c: 2 } }\n"
    yield "deep", good + b"evil " + b"{ a " * 10_000
    yield "times", good + b"all_model_checkpoint_timestamps: nan\nlast_preserved_timestamp: 1e999\n"
    yield "JSON", json.dumps({"model_checkpoint_path": "../canary-1"}).encode()
    for end in range(1, len(good), max(1, len(good) // 12)):
        yield f"cut at {end}", good[:end]


def shard_indexes(names: list[str], canary: str) -> Iterator[Mutant]:
    """Yield indexes that place the tensors `names` in files outside."""
    for what, path in {**_PATHS, "absolute": canary}.items():
        for suffix in ("", ".safetensors"):
            index = {"metadata": {"total_size": 8}, "weight_map": dict.fromkeys(names, path + suffix)}
            yield f"{what}{suffix}", json.dumps(index).encode()

"""Every file name torchsaver writes, and its parser: prefix, step, shard, temporary.

    PREFIX                                     what save() returns: DIR/model.ckpt-1000
    PREFIX.safetensors                         the checkpoint in one file
    PREFIX.safetensors.index.json              the index of a sharded one; where both are there, the index counts
    PREFIX-00001-of-00003.safetensors          a shard; PREFIX-s<16 hex>-00001-of-00003.safetensors if that is taken
    DIR/checkpoint                             the state file
    DIR/.torchsaver-<16 hex>.tmp               being written, or left by a writer that died

TensorFlow's names are found as well. Names are literal: nothing here is ever a pattern, but for the name TensorFlow
itself gives to a sharded V1 checkpoint, which it writes with question marks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from torchsaver.formats.tensorflow import names as tensorflow_names

FILE_ENDING = ".safetensors"
INDEX_ENDING = ".safetensors.index.json"
STATE_FILE = "checkpoint"
_MOST_DIRECTORIES = 1000
_real_paths: ContextVar[dict[str, str] | None] = ContextVar("_real_paths", default=None)
_SHARD = re.compile(r"(-[0-9]{5,}-of-[0-9]{5,}|-s[0-9a-f]{16})\Z")
_SHARD_END = re.compile(r"(-s[0-9a-f]{16})?-[0-9]{5,}-of-[0-9]{5,}\Z")
_TEMPORARY = re.compile(r"\.torchsaver-[0-9a-f]{16}\.tmp")


def path_text(path: Any, what: str = "save_path") -> str:
    """Return a str, bytes or os.PathLike path as text.

    Raises:
        TypeError: `path` is none of them.
    """
    if not isinstance(path, (str, bytes, os.PathLike)):
        hint = " (latest_checkpoint() gives None when there is none)" if path is None else ""
        raise TypeError(f"{what} is a path: str, bytes or os.PathLike, not {type(path).__name__}{hint}")
    return os.fsdecode(path)


def checkpoint_file(prefix: str) -> str:
    """Return the file of a checkpoint that is in one file."""
    return prefix + FILE_ENDING


def index_file(prefix: str) -> str:
    """Return the index of a sharded checkpoint."""
    return prefix + INDEX_ENDING


def shard_file(prefix: str, number: int, count: int, mark: str = "") -> str:
    """Return the name of shard `number` (from 1) of `count`; `mark` sets it apart where the plain name is taken."""
    return f"{prefix}{'-' + mark if mark else ''}-{number:05d}-of-{count:05d}{FILE_ENDING}"


def shard_files(prefix: str, count: int) -> list[str]:
    """Return names for `count` shards, none of which is there already.

    A shard is never overwritten: until the new index is there, the old one needs it.
    """
    mark = ""
    while True:
        names = [shard_file(prefix, number, count, mark) for number in range(1, count + 1)]
        if not any(os.path.lexists(name) for name in names):
            return names
        mark = f"s{_random_hex()}"  # no step looks like this


def _random_hex() -> str:
    """Return 16 hexadecimal digits that nobody can guess; what the module `secrets` does takes long to import."""
    return os.urandom(8).hex()


def why_not_a_prefix(name: str) -> str | None:
    """Return why a checkpoint cannot have this base name: it would look like another file of ours."""
    if name.endswith((FILE_ENDING, INDEX_ENDING)):
        return f"it ends like a file; leave {FILE_ENDING} off, save() adds it"
    if _SHARD.search(name):
        return "it looks like a shard of another checkpoint; choose another"
    return None


def is_shard_of(prefix: str, name: str) -> bool:
    """Return whether `name` is a file name that `shard_files` gives for this prefix."""
    base = os.path.basename(prefix)
    return name.startswith(base) and prefix_name(name) == (base, True)


def prefix_name(name: str) -> tuple[str, bool] | None:
    """Return the base name of the prefix a file of ours belongs to, and whether it is a shard; None for other names."""
    for ending in (INDEX_ENDING, FILE_ENDING):
        if name.endswith(ending) and name != ending:
            stem = name.removesuffix(ending)
            whole = _SHARD_END.sub("", stem) if ending == FILE_ENDING else stem
            return (whole or stem), whole not in ("", stem)
    return None


def own_name(directory: str, prefix: str) -> str | None:
    """Return the base name of a prefix that stands in `directory` itself, None for any other."""
    return own_names(directory, [prefix])[prefix]


def own_names(directory: str, prefixes: Iterable[str]) -> dict[str, str | None]:
    """Return for each prefix its base name if it stands in `directory` itself, else None: a text may say anything."""
    real = real_directory(directory)
    parents = {directory: real, real: real}  # looking one up takes the system's time, and a text may name very many
    names: dict[str, str | None] = {}
    for prefix in prefixes:
        parent, name = os.path.split(prefix)
        if parent not in parents and len(parents) < _MOST_DIRECTORIES and "\0" not in parent:
            parents[parent] = os.path.realpath(parent or ".")
        is_own = parents.get(parent) == real and name not in ("", ".", "..") and "\0" not in name
        names[prefix] = name if is_own and why_not_a_prefix(name) is None else None
    return names


def find_checkpoint(save_path: str) -> str | None:
    """Return the file a prefix stands for: its index, its file, or a file of that very name; None when there is none.

    Our own files come before TensorFlow's of the same prefix. Only a file that is really gone is None; a directory that
    may not be read is an OSError.
    """
    for path in (index_file(save_path), checkpoint_file(save_path), tensorflow_names.index_file(save_path)):
        if _is_file(path):
            return path
    if not save_path:
        return None
    index = tensorflow_names.index_beside(save_path)
    if index is not None and _is_file(index):
        return index
    if _is_file(save_path):
        return save_path
    shards = tensorflow_names.shards_of_pattern(save_path)
    return next((path for path in shards if _is_file(path)), None)


def _is_file(path: str) -> bool:
    """Return whether something that is no directory has this name."""
    try:
        return not stat.S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL, which no file name holds
        return False


def is_taken(path: str) -> bool:
    """Return whether a file of a checkpoint would take another one's name.

    Raises:
        IsADirectoryError: A directory has it.
        OSError: The name is too long, or the place may not be looked at.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        message = "a directory stands where the checkpoint's file goes; move it away or choose another name"
        raise IsADirectoryError(errno.EISDIR, message, path)
    return True


def find_version(save_path: str) -> tuple[str, tuple[int, ...]] | None:
    """Return the file a prefix stands for, and what tells it from another that takes its name; None without one."""
    path = find_checkpoint(save_path)
    if path is None:
        return None
    try:
        status = os.stat(path)
    except FileNotFoundError:  # gone since; opening it will tell
        return path, ()
    return path, (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)


def is_index(path: str) -> bool:
    """Return whether `path` is named as a shard index."""
    return path.endswith(".index.json")


def state_file(directory: str, latest_filename: str | None = None) -> str:
    """Return the path of the state file in `directory`."""
    return os.path.join(directory, STATE_FILE if latest_filename is None else latest_filename)


def step_prefix(save_path: str, global_step: int | None, pad_step_number: bool) -> str:
    """Return the prefix for a step: `save_path`, or `save_path-STEP`, of eight digits at least when padded."""
    if global_step is None:
        return save_path
    return f"{save_path}-{global_step:08d}" if pad_step_number else f"{save_path}-{global_step}"


def temporary_file(directory: str) -> str:
    """Return a new, unpredictable temporary name in `directory`."""
    return os.path.join(directory, f".torchsaver-{_random_hex()}.tmp")


def is_temporary(name: str) -> bool:
    """Return whether `name` is a file name `temporary_file` makes."""
    return _TEMPORARY.fullmatch(name) is not None


def identity(prefix: str) -> str:
    """Return what makes two spellings of a prefix one checkpoint: the real directory and the literal name."""
    directory, name = os.path.split(prefix)
    return os.path.join(real_directory(directory), name)


def real_directory(directory: str) -> str:
    """Return the real path of a directory; "" is the working one."""
    known = _real_paths.get()
    if known is None:
        return os.path.realpath(directory or ".")
    if directory not in known:
        known[directory] = os.path.realpath(directory or ".")
    return known[directory]


@contextlib.contextmanager
def links_followed_once() -> Iterator[None]:
    """Let `real_directory` follow links only the first time it is asked, in this thread and with block: a save's."""
    token = _real_paths.set({})
    try:
        yield
    finally:
        _real_paths.reset(token)

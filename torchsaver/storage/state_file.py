"""The state file: TensorFlow's CheckpointState as text, which says what checkpoints a directory holds.

Its text is TF's byte for byte, in both directions; the grammar is formats/text_proto.py.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

from torchsaver.errors import CorruptCheckpointError
from torchsaver.formats.regular_file import read_regular
from torchsaver.formats.text_proto import Kind, TextProtoError, Value, format_text, parse_text
from torchsaver.storage import disk, paths

logger = logging.getLogger("torchsaver")

_MAX_STATE_BYTES = 16 << 20  # a hundred thousand names
_FIELDS: dict[str, Kind] = {
    "model_checkpoint_path": "string",
    "all_model_checkpoint_paths": "strings",
    "all_model_checkpoint_timestamps": "doubles",
    "last_preserved_timestamp": "double",
}


@dataclass
class CheckpointState:
    """What a state file says (TF: the CheckpointState protocol buffer).

    Attributes:
        model_checkpoint_path: Prefix of the newest checkpoint.
        all_model_checkpoint_paths: Prefixes that are kept, oldest first; the newest is the last.
        all_model_checkpoint_timestamps: Their times in seconds since the epoch; Saver leaves it empty, as in TF.
        last_preserved_timestamp: Seconds since the epoch; used by TF's CheckpointManager only.
    """

    model_checkpoint_path: str = ""
    all_model_checkpoint_paths: list[str] = field(default_factory=list)
    all_model_checkpoint_timestamps: list[float] = field(default_factory=list)
    last_preserved_timestamp: float = 0.0


def format_state(state: CheckpointState) -> str:
    """Return the text of a state file; as in protobuf, an empty path and a zero time are left out."""
    single_path = [state.model_checkpoint_path] if state.model_checkpoint_path else []
    single_time = [state.last_preserved_timestamp] if state.last_preserved_timestamp else []
    columns: Iterable[Sequence[Value]] = (
        single_path,
        state.all_model_checkpoint_paths,
        state.all_model_checkpoint_timestamps,
        single_time,
    )
    return format_text((name, value) for name, values in zip(_FIELDS, columns, strict=True) for value in values)


def parse_state(text: str) -> CheckpointState:
    """Return the state in `text`.

    Raises:
        TextProtoError: It is not the text of a CheckpointState.
    """
    values = parse_text(text, _FIELDS)
    newest, kept, times, preserved = (values[name] for name in _FIELDS)
    return CheckpointState(
        cast("str", newest[-1]) if newest else "",
        cast("list[str]", kept),
        cast("list[float]", times),
        cast("float", preserved[-1]) if preserved else 0.0,
    )


def get_checkpoint_state(
    checkpoint_dir: str | os.PathLike[str], *, latest_filename: str | None = None
) -> CheckpointState | None:
    """Return what the state file of a directory says, its relative paths joined to `checkpoint_dir`.

    As in TF, a file that does not parse counts as none, with a warning, and nothing is checked on the disk. Unlike TF,
    a file that cannot be read is an error: taking it for "no checkpoint" would start a training run from nothing.

    Args:
        checkpoint_dir: The directory.
        latest_filename: The state file's name, "checkpoint" by default.

    Returns:
        The state, or None when there is no state file.

    Raises:
        CorruptCheckpointError: The file names no newest checkpoint (it is empty, say), or is not UTF-8; a ValueError.
        OSError: It is there and cannot be read.
    """
    if not isinstance(checkpoint_dir, (str, os.PathLike)):
        raise TypeError(f"checkpoint_dir is a str or os.PathLike, not {type(checkpoint_dir).__name__}")
    directory = os.fspath(checkpoint_dir)
    path = paths.state_file(directory, latest_filename)
    data, problem = read_state_data(path)
    state = None
    if data is not None:
        state, problem = parse_state_data(data, path)
    if problem is not None and isinstance(problem.__cause__, TextProtoError):
        logger.warning("%s is not a state file, and counts as none: %s", path, problem.__cause__)
        return None
    if problem is not None:
        raise problem
    if state is not None:
        state.model_checkpoint_path = os.path.join(directory, state.model_checkpoint_path)
        state.all_model_checkpoint_paths = [os.path.join(directory, kept) for kept in state.all_model_checkpoint_paths]
    return state


def read_state_data(path: str) -> tuple[bytes | None, CorruptCheckpointError | None]:
    """Return the bytes of a state file, or what is wrong with what stands there; a directory is nothing, as in TF.

    Raises:
        OSError: Something is there and cannot be read.
    """
    try:
        return read_regular(path, _MAX_STATE_BYTES), None
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None, None
    except CorruptCheckpointError as error:
        return None, error


def parse_state_data(data: bytes, path: str) -> tuple[CheckpointState | None, CorruptCheckpointError | None]:
    """Return what the bytes of the state file `path` say, or why they say nothing."""
    try:
        state = parse_state(data.decode("utf-8"))
    except TextProtoError as error:
        problem = CorruptCheckpointError(path, 0, f"it is no state file: {error}")
        problem.__cause__ = error
        return None, problem
    except UnicodeDecodeError as error:
        return None, CorruptCheckpointError(path, error.start, "a state file is UTF-8 text")
    if not state.model_checkpoint_path:
        return None, CorruptCheckpointError(path, 0, "it names no newest checkpoint (model_checkpoint_path)")
    return state, None


def latest_checkpoint(checkpoint_dir: str | os.PathLike[str], *, latest_filename: str | None = None) -> str | None:
    """Return the prefix of the newest checkpoint of a directory, for `restore`.

    As in TF, an older one is never returned in its place: when the newest is gone, that is logged and None returned.

    Args:
        checkpoint_dir: The directory.
        latest_filename: The state file's name, "checkpoint" by default.

    Returns:
        The prefix, or None when there is no state file or its newest checkpoint is gone.

    Raises:
        CorruptCheckpointError: As `get_checkpoint_state`.
        OSError: Something is there and cannot be read.
    """
    before = None
    while (state := get_checkpoint_state(checkpoint_dir, latest_filename=latest_filename)) is not None:
        if paths.find_checkpoint(state.model_checkpoint_path) is not None:
            return state.model_checkpoint_path
        if state.model_checkpoint_path == before:
            path = paths.state_file(os.fspath(checkpoint_dir), latest_filename)
            logger.error("%s names %s as the newest checkpoint, and it is not there", path, state.model_checkpoint_path)
            return None
        before = (
            state.model_checkpoint_path
        )  # a writer may have rotated it away meanwhile: then the file names a newer one by now
    return None


def generate_checkpoint_state_proto(
    save_dir: str | os.PathLike[str],
    model_checkpoint_path: str,
    *,
    all_model_checkpoint_paths: Sequence[str] | None = None,
    all_model_checkpoint_timestamps: Sequence[float] | None = None,
    last_preserved_timestamp: float | None = None,
) -> CheckpointState:
    """Return the state to write into `save_dir`: the newest made the last of the list, paths as the file has them.

    As in TF, paths stay as they are when `save_dir` is absolute, and relative ones become relative to a relative
    `save_dir`. Unlike TF, the caller's list is not changed.

    Args:
        save_dir: The directory of the state file.
        model_checkpoint_path: Prefix of the newest checkpoint.
        all_model_checkpoint_paths: Prefixes that are kept, oldest first.
        all_model_checkpoint_timestamps: Seconds since the epoch, one for each path after the newest was added.
        last_preserved_timestamp: Seconds since the epoch.

    Raises:
        ValueError: There are timestamps, and not one for each path.
    """
    directory = os.fspath(save_dir)
    kept = list(all_model_checkpoint_paths or [])
    if not kept or kept[-1] != model_checkpoint_path:
        kept.append(model_checkpoint_path)
    times = list(all_model_checkpoint_timestamps or [])
    if times and len(times) != len(kept):
        raise ValueError(f"{len(times)} timestamps for {len(kept)} checkpoints {kept}; give one for each, or none")
    if not os.path.isabs(directory):
        start = directory or "."
        kept = [path if os.path.isabs(path) else os.path.relpath(path, start) for path in kept]
    return CheckpointState(kept[-1], kept, times, last_preserved_timestamp or 0.0)


def update_checkpoint_state(
    save_dir: str | os.PathLike[str],
    model_checkpoint_path: str,
    *,
    all_model_checkpoint_paths: Sequence[str] | None = None,
    latest_filename: str | None = None,
    all_model_checkpoint_timestamps: Sequence[float] | None = None,
    last_preserved_timestamp: float | None = None,
) -> None:
    """Replace the state file of `save_dir`, atomically and durably; arguments as `generate_checkpoint_state_proto`.

    Raises:
        RuntimeError: The state file would have the newest checkpoint's own name; nothing was written.
        OSError: The directory is missing or cannot be written.
    """
    state = generate_checkpoint_state_proto(
        save_dir,
        model_checkpoint_path,
        all_model_checkpoint_paths=all_model_checkpoint_paths,
        all_model_checkpoint_timestamps=all_model_checkpoint_timestamps,
        last_preserved_timestamp=last_preserved_timestamp,
    )
    write_state(paths.state_file(os.fspath(save_dir), latest_filename), state)


def write_state(path: str, state: CheckpointState) -> None:
    """Write `state` to the state file `path`, atomically and durably.

    Raises:
        RuntimeError: `path` is the newest checkpoint's own name; nothing was written.
        OSError: The directory is missing or cannot be written.
    """
    newest = os.path.join(os.path.dirname(path), state.model_checkpoint_path)
    if paths.identity(path) in {paths.identity(newest), paths.identity(state.model_checkpoint_path)}:
        raise RuntimeError(
            f"the newest checkpoint {newest!r} has the state file's own name; choose another latest_filename"
        )
    disk.write_atomic(path, format_state(state).encode("utf-8"))


def relative_state(save_dir: str, kept: Sequence[str]) -> CheckpointState:
    """Return a state whose paths are relative to `save_dir`, so that the directory can be moved or copied.

    Args:
        save_dir: The directory of the state file.
        kept: Real, absolute paths (`paths.identity`), so that a ".." is the one the system will follow; newest last.
    """
    start = paths.real_directory(save_dir)
    relative = [os.path.relpath(path, start) for path in kept]
    return CheckpointState(relative[-1], relative)

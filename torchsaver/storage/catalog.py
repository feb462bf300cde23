"""What checkpoints a directory holds: as its state file lists them, and as they say themselves.

Names are base names of prefixes that stand in the directory itself. What a state file says of any other place is left
alone here: a file that came from somewhere must not lead anywhere.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable
from typing import NamedTuple

from torchsaver.errors import CorruptCheckpointError, UnsupportedCheckpointError
from torchsaver.formats.commit import Commit
from torchsaver.formats.json_text import is_unicode
from torchsaver.formats.manifest import Manifest
from torchsaver.formats.regular_file import read_regular
from torchsaver.formats.safetensors_file import SafetensorsFile
from torchsaver.formats.shard_index import MAX_INDEX_BYTES, parse_index
from torchsaver.storage import paths
from torchsaver.storage.state_file import CheckpointState, parse_state_data, read_state_data

_HEAD_BYTES = 1 << 20


class Listing(NamedTuple):
    """What a state file says of its own directory.

    Attributes:
        path: The state file.
        data: Its bytes; None when there is none.
        names: What it lists, oldest first; the newest, which it names twice, is the last.
        outside: Paths it lists that do not stand in the directory itself.
        problem: What is wrong with the file, which then says nothing; None when it is fine or not there.
    """

    path: str
    data: bytes | None = None
    names: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    problem: CorruptCheckpointError | None = None

    @property
    def identities(self) -> list[str]:
        """What it lists, by identity, oldest first."""
        directory = paths.real_directory(os.path.dirname(self.path))
        return [os.path.join(directory, name) for name in self.names]

    def merged(self, others: Iterable[str], listed: Iterable[str]) -> list[str]:
        """Return identities in order of commit: the `listed`, oldest first, and `others` where they stand here."""
        *older, newest = listed
        wanted = {*others, *older}
        kept = [identity for identity in self.identities if identity in wanted] if others else []
        stands = set(kept)
        return [*(identity for identity in older if identity not in stands), *kept, newest]

    def state_without(self, gone: Collection[str]) -> CheckpointState:
        """Return what the state file says but for the checkpoints of these identities; the newest stays.

        Raises:
            CorruptCheckpointError: It is no state file.
        """
        state, problem = parse_state_data(self.data or b"", self.path)
        if state is None:
            raise problem or CorruptCheckpointError(self.path, 0, "it is no state file")
        texts, times = state.all_model_checkpoint_paths, state.all_model_checkpoint_timestamps
        identities = [paths.identity(os.path.join(os.path.dirname(self.path), text)) for text in texts]
        stays = [number for number, identity in enumerate(identities) if identity not in gone]
        state.all_model_checkpoint_paths = [texts[number] for number in stays]
        state.all_model_checkpoint_timestamps = [times[number] for number in stays] if len(times) == len(texts) else []
        return state


def read_listing(directory: str, latest_filename: str | None = None, known: Listing | None = None) -> Listing:
    """Return what the state file of a directory says; `known` itself if that is what it still says.

    Raises:
        OSError: It is there and cannot be read.
    """
    path = paths.state_file(directory, latest_filename)
    data, problem = read_state_data(path)
    if known is not None and (data, str(problem)) == (known.data, str(known.problem if data is None else None)):
        return known
    state = None
    if data is not None:
        state, problem = parse_state_data(data, path)
    if state is None:
        return Listing(path, data, problem=problem)
    listed = {text: os.path.join(directory, text) for text in state.all_model_checkpoint_paths}
    listed.pop(state.model_checkpoint_path, None)  # the newest is the last, wherever else it stands
    listed[state.model_checkpoint_path] = os.path.join(directory, state.model_checkpoint_path)
    names = paths.own_names(directory, listed.values())
    inside = dict.fromkeys(name for prefix in listed.values() if (name := names[prefix]) is not None)
    outside = tuple(text for text, prefix in listed.items() if names[prefix] is None)
    return Listing(path, data, tuple(inside), outside)


def checkpoint_names(directory: str, *, with_fragments: bool = False) -> list[str]:
    """Return the names of checkpoints whose index or file is there, by the names of the files alone.

    Args:
        directory: Where to look.
        with_fragments: Those of which only shards are there too, which stand for no checkpoint.

    Raises:
        OSError: The directory cannot be listed.
    """
    files = [file for file in os.listdir(directory or ".") if is_unicode(file)]  # a state file could not list others
    found = [named for file in files if (named := paths.prefix_name(file)) is not None]
    return sorted({name for name, is_shard in found if with_fragments or not is_shard})


def read_manifest(prefix: str) -> Manifest:
    """Return what a checkpoint says of itself: its index or file, or else one of its shards.

    Raises:
        FileNotFoundError: Nothing is there.
        CorruptCheckpointError, UnsupportedCheckpointError, OSError: It cannot be read.
    """
    index, single = paths.index_file(prefix), paths.checkpoint_file(prefix)
    if os.path.lexists(index):
        return parse_index(read_regular(index, MAX_INDEX_BYTES), index)[1]
    directory = os.path.dirname(prefix)
    if not os.path.lexists(single):
        shards = [name for name in sorted(os.listdir(directory or ".")) if paths.is_shard_of(prefix, name)]
        single = os.path.join(directory, shards[0]) if shards else single
    with SafetensorsFile(single) as file:
        return file.manifest


def looks_like_ours(prefix: str) -> bool:
    """Return whether a damaged checkpoint bears our mark where a header stands; False if it cannot be looked at."""
    with contextlib.suppress(OSError):
        file = paths.find_checkpoint(prefix)
        if file is not None and os.path.isfile(file):
            with open(file, "rb") as opened:
                return b"header_crc32c" in opened.read(_HEAD_BYTES)
    return False


def read_commit(prefix: str) -> Commit | None:
    """Return the record a checkpoint holds; None when it has none, is damaged or gone.

    Raises:
        OSError: It is there and cannot be read.
    """
    try:
        return read_manifest(prefix).commit
    except (FileNotFoundError, IsADirectoryError, CorruptCheckpointError, UnsupportedCheckpointError):
        return None


def written_after(path: str, prefix: str) -> bool:
    """Return whether a file was written after a checkpoint was, as far as clocks can tell; False if either is gone."""
    file = paths.find_checkpoint(prefix)
    try:
        return file is not None and os.stat(path).st_mtime_ns > os.stat(file).st_mtime_ns
    except FileNotFoundError:
        return False


class Records:
    """The records of the checkpoints in one directory; each header is read once, when its name is new.

    Attributes:
        unread: How many could not be read the last time, an error of the system; they are tried again the next time.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._commits: dict[str, Commit | None] = {}
        self.unread = 0

    def refresh(self, names: Iterable[str] | None = None) -> dict[str, Commit]:
        """Return the records by name, of these `names` or of all that are there, fragments too; not all have one.

        Raises:
            OSError: The directory cannot be listed.
        """
        names = checkpoint_names(self._directory, with_fragments=True) if names is None else list(names)
        self.unread = 0
        for name in names:
            if name not in self._commits:
                try:
                    self._commits[name] = read_commit(os.path.join(self._directory, name))
                except OSError:  # one bad file must not keep others from being saved
                    self.unread += 1
        return {name: commit for name in names if (commit := self._commits.get(name)) is not None}

    def note(self, name: str, commit: Commit | None) -> None:
        """Take down the record of a checkpoint that has just been written."""
        self._commits[name] = commit

    def forget(self, name: str) -> None:
        """Read a header again when it is asked for."""
        self._commits.pop(name, None)

"""Where a save stands in the order of its directory: its own record, kept with the checkpoint.

The state file says the same and comes first. This record is what is left when that file is damaged or lost, and what
proves of a file that no state file lists that it is a leftover: neither names nor clocks ever decide either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torchsaver.formats.checksum import crc32c_hex

MAX_SEQUENCE = (1 << 63) - 1


class Commit(NamedTuple):
    """The record of one save.

    Attributes:
        sequence: One more than the highest of the directory when the save began; the order of commit.
        place: CRC-32C of the directory's real path: in a moved or copied directory a record proves nothing.
        state_file: Name of the state file that was to list the checkpoint.
        replaces: CRC-32C of the state file's bytes before, None without one. While these are there the save is undone.
        after: The sequence of the newest checkpoint that state file listed; 0 without one.
        is_new: Whether no checkpoint had the name before.
        kept: Names of what that state file was to list in this directory, oldest first and this checkpoint last.
        expired: Names of what was to be removed once it did.
    """

    sequence: int
    place: int
    state_file: str
    replaces: int | None
    after: int
    is_new: bool
    kept: tuple[str, ...]
    expired: tuple[str, ...]


def commit_to_json(commit: Commit) -> dict[str, Any]:
    """Return the record as the manifest holds it."""
    return {
        "sequence": commit.sequence,
        "place": crc32c_hex(commit.place),
        "state_file": commit.state_file,
        "replaces": None if commit.replaces is None else crc32c_hex(commit.replaces),
        "after": commit.after,
        "is_new": commit.is_new,
        "kept": list(commit.kept),
        "expired": list(commit.expired),
    }


def commit_from_json(value: Any) -> Commit:
    """Return the record in a manifest.

    Raises:
        ValueError: It is none; says why.
    """
    names = {"sequence", "place", "state_file", "replaces", "after", "is_new", "kept", "expired"}
    if not isinstance(value, Mapping) or set(value) != names:
        raise ValueError(f"a commit is an object of {', '.join(sorted(names))}")
    sequence, place, state_file = value["sequence"], value["place"], value["state_file"]
    replaces, kept, expired = value["replaces"], value["kept"], value["expired"]
    after, is_new = value["after"], value["is_new"]
    if type(sequence) is not int or type(after) is not int or not 0 <= after < sequence <= MAX_SEQUENCE:
        raise ValueError(f"the sequence of a commit is a positive integer beyond {after!r}, not {sequence!r}")
    if type(is_new) is not bool:
        raise ValueError(f"is_new of a commit is true or false, not {is_new!r}")
    if not all(isinstance(text, str) for text in (place, state_file, "" if replaces is None else replaces)):
        raise ValueError("place, state_file and replaces of a commit are texts")
    if not (_are_names(kept) and _are_names(expired)):
        raise ValueError("kept and expired of a commit are lists of names")
    replaced = None if replaces is None else int(replaces, 16)
    return Commit(sequence, int(place, 16), state_file, replaced, after, is_new, tuple(kept), tuple(expired))


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)

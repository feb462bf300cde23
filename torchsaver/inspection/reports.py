"""What verifying and listing find, as values: nothing here reads anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Verdict = Literal[
    "valid",  # every checksum holds
    "headers_ok",  # the headers' checksums hold; no tensor was read
    "no_checksums",  # a third party's: the structure holds, and there is nothing to compare the values with
    "incomplete",  # shards without an index that no state file lists: what a save that was cut short has left
    "damaged",
    "gone",  # listed, and not there
    "unsupported",  # of a newer version of torchsaver or torch
    "unreadable",  # an error of the system: it says nothing of the bytes
]

Listed = Literal["newest", "yes", "no"]  # by the state file


class Damage(NamedTuple):
    """One thing that is wrong with a checkpoint's bytes.

    Attributes:
        file: The file it is in, or that is missing.
        tensor: The tensor's key; None when it is the header, the index, the state file or a whole file.
        offset: The byte of the file where what is damaged begins: a tensor's first one, because the checksum covers
            the whole tensor. None when the file is missing.
        reason: What is wrong.
    """

    file: str
    tensor: str | None
    offset: int | None
    reason: str


class Progress(NamedTuple):
    """How far a verification is: bytes of tensors read, bytes to read in all, and the checkpoint being read."""

    done_bytes: int
    total_bytes: int
    name: str


@dataclass(frozen=True)
class VerifyReport:
    """What verifying one checkpoint has found.

    Attributes:
        save_path: Its prefix or file.
        verdict: One of the words of `Verdict`.
        damage: Everything that is damaged, in the order of the files and of their bytes.
        problem: Why it is "unsupported", "unreadable" or "incomplete"; else "".
        files: The files that belong to it, a missing shard too.
        file_bytes: Size of the files that are there.
        tensors: Number of tensors found.
        checked_tensors: Number of tensors read whose checksum is stored.
        checked_bytes: Their size.
        checksummed_bytes: Size of all tensors whose checksum is stored, read or not.
        global_step, time: As saved; None in a third party's file. Time in seconds since the epoch.
        sequence: Its place in the order of commit of its directory; None without a record.
        alias_of: The name it was saved under, if that is another one: "best" may be "model.ckpt-500".
    """

    save_path: str
    verdict: Verdict
    damage: tuple[Damage, ...] = ()
    problem: str = ""
    files: tuple[str, ...] = ()
    file_bytes: int = 0
    tensors: int = 0
    checked_tensors: int = 0
    checked_bytes: int = 0
    checksummed_bytes: int = 0
    global_step: int | None = None
    time: float | None = None
    sequence: int | None = None
    alias_of: str | None = None

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong with what was looked at; what that was, the verdict says."""
        return self.verdict in ("valid", "headers_ok", "no_checksums", "incomplete")


@dataclass(frozen=True)
class CheckpointStatus:
    """A checkpoint of a directory.

    Attributes:
        name: Its prefix without the directory.
        listed: Whether the state file lists it: "newest", "yes" or "no".
        report: What is known of it; `report.save_path` is for `restore`.
    """

    name: str
    listed: Listed
    report: VerifyReport


@dataclass(frozen=True)
class DirectoryReport:
    """What a directory holds.

    Attributes:
        checkpoint_dir: The directory.
        state_file: Where its state file is, or would be.
        damage: What is wrong with the state file.
        checkpoints: In order of commit, oldest first.
    """

    checkpoint_dir: str
    state_file: str
    damage: tuple[Damage, ...]
    checkpoints: tuple[CheckpointStatus, ...]

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong with the state file and with any checkpoint."""
        return not self.damage and all(status.report.is_sound for status in self.checkpoints)

"""What a process that died has left: told from what stays by the checkpoints' own records, never by names or times."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torchsaver.formats.commit import Commit


def unlisted_yet(commits: Mapping[str, Commit]) -> list[str]:
    """Return the names, in order of commit, of what was saved where no state file has ever been.

    It is what the first save of a directory leaves when it dies before it has written the state file. Where any record
    knows of a state file there has been one: then it was removed, which is not for us to undo.

    Args:
        commits: The records of what was saved for this state file in this directory.
    """
    if any(commit.replaces is not None for commit in commits.values()):
        return []
    return sorted(commits, key=lambda name: (commits[name].sequence, name))


def never_listed(
    commits: Mapping[str, Commit], listed: Collection[str], state_crc32c: int | None, newest: int
) -> set[str]:
    """Return names whose saves ended before the state file listed them: it is still the one they were to replace.

    Args:
        commits: The records of what was saved for this state file in this directory.
        listed: Names the state file lists, or is about to.
        state_crc32c: CRC-32C of the state file's bytes; None: there is none. (Had there been one, nothing is proved.)
        newest: The sequence of the newest checkpoint it lists; 0 without one.
    """
    return {
        name
        for name, commit in commits.items()
        if name not in listed and commit.is_new and (commit.replaces, commit.after) == (state_crc32c, newest)
    }


def expired(commits: Mapping[str, Commit], listed: Collection[str]) -> set[str]:
    """Return names that are still there, and were to be removed after a save that is listed; as `never_listed`."""
    found = set()
    for name in listed:
        if name in commits:
            gone = {other for other in commits[name].expired if other in commits and other not in listed}
            found |= {other for other in gone if commits[other].sequence < commits[name].sequence}
    return found

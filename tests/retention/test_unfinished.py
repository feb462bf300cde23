"""What a died save has left is told by records alone, and nothing is a leftover that is not proved to be one."""

from __future__ import annotations

import pytest

from torchsaver.formats.commit import Commit
from torchsaver.retention.unfinished import expired, never_listed, unlisted_yet

STATE = 0xABC


def _commit(
    sequence: int,
    *,
    replaces: int | None = STATE,
    after: int = 0,
    is_new: bool = True,
    gone: tuple[str, ...] = (),
) -> Commit:
    return Commit(sequence, 1, "checkpoint", replaces, after, is_new, (f"m-{sequence}",), gone)


def test_unlisted_yet_are_all_in_order_of_commit_where_no_record_knows_a_state_file() -> None:
    commits = {"m-2": _commit(2, replaces=None), "m-1": _commit(1, replaces=None), "m-0": _commit(2, replaces=None)}
    assert unlisted_yet(commits) == ["m-1", "m-0", "m-2"]


def test_unlisted_yet_are_none_where_a_record_knows_a_state_file_which_somebody_has_removed() -> None:
    assert unlisted_yet({"m-1": _commit(1, replaces=None), "m-2": _commit(2)}) == []


@pytest.mark.parametrize(
    ("commit", "listed", "state", "newest", "found"),
    [
        (_commit(3, after=2), (), STATE, 2, True),
        (_commit(3, after=2), ("m-3",), STATE, 2, False),
        (_commit(3, after=2), (), STATE + 1, 2, False),  # the state file is another one by now
        (_commit(3, after=2), (), None, 2, False),
        (_commit(3, after=2), (), STATE, 1, False),  # the same bytes, and they list another checkpoint
        (_commit(3, after=2, is_new=False), (), STATE, 2, False),  # an older one had the name
        (_commit(3, replaces=None), (), None, 0, True),
    ],
)
def test_never_listed_is_what_the_state_file_of_before_is_still_there_for(
    commit: Commit, listed: tuple[str, ...], state: int | None, newest: int, found: bool
) -> None:
    assert never_listed({"m-3": commit}, listed, state, newest) == ({"m-3"} if found else set())


def test_expired_is_older_than_the_listed_one_that_says_so_and_unlisted() -> None:
    commits = {
        "m-1": _commit(1),
        "m-2": _commit(2),
        "m-3": _commit(3, gone=("m-1", "m-2", "m-4", "m-9")),
        "m-4": _commit(4, gone=("m-2",)),
    }
    assert expired(commits, ["m-3"]) == {"m-1", "m-2"}  # m-4 is younger than who dooms it, m-9 is not there
    assert expired(commits, ["m-2", "m-3"]) == {"m-1"}
    assert expired(commits, ["m-1"]) == set()
    assert expired(commits, ["theirs"]) == set()

"""The record of a save: what is written comes back, and anything else is refused with its reason."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchsaver.formats.commit import Commit, commit_from_json, commit_to_json

WORD = st.integers(0, 2**32 - 1)
NAMES = st.lists(st.text(max_size=8), max_size=4).map(tuple)
AFTER = st.integers(0, 2**63 - 2)
COMMITS = AFTER.flatmap(
    lambda after: st.builds(
        Commit,
        st.integers(after + 1, 2**63 - 1),
        WORD,
        st.text(max_size=8),
        st.none() | WORD,
        st.just(after),
        st.booleans(),
        NAMES,
        NAMES,
    )
)
RECORD: dict[str, Any] = commit_to_json(Commit(7, 0xAB, "checkpoint", 0x12, 5, True, ("m-1", "m-2"), ("m-0",)))


@given(COMMITS)
def test_record_through_json_comes_back_the_same(commit: Commit) -> None:
    assert commit_from_json(json.loads(json.dumps(commit_to_json(commit)))) == commit


def test_record_is_readable() -> None:
    assert RECORD == {
        "sequence": 7,
        "place": "000000ab",
        "state_file": "checkpoint",
        "replaces": "00000012",
        "after": 5,
        "is_new": True,
        "kept": ["m-1", "m-2"],
        "expired": ["m-0"],
    }


@pytest.mark.parametrize("field", RECORD)
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "x", [1], [None], {}, 2**63, "missing"])
def test_record_with_a_wrong_or_missing_field_is_refused(field: str, value: Any) -> None:
    record = {name: kept for name, kept in RECORD.items() if value != "missing" or name != field}
    if value != "missing":
        record[field] = value
    if (field, value) in (("state_file", "x"), ("after", 0), ("is_new", True)) and type(value) is type(RECORD[field]):
        return
    with pytest.raises(ValueError, match=r"commit|invalid literal"):
        commit_from_json(record)


@pytest.mark.parametrize("value", [None, [], "x", {}, {**RECORD, "more": 1}])
def test_record_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="a commit is an object of"):
        commit_from_json(value)

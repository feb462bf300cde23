"""The real TensorFlow's get_checkpoint_state has read our state files: recorded by tests/data/record_state_files.py."""

import json
from pathlib import Path
from typing import Any

import pytest

from torchsaver.storage.state_file import CheckpointState, format_state, parse_state

CASES = json.loads((Path(__file__).parent.parent / "data" / "state_files.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: ascii(case["state"]["model_checkpoint_path"]))
def test_state_tensorflow_has_read_is_still_written_alike_and_read_alike(case: dict[str, Any]) -> None:
    state = CheckpointState(**case["state"])
    assert case["tensorflow"] == case["state"]
    assert format_state(state) == case["text"]
    assert parse_state(case["text"]) == state


def test_record_was_made_by_tensorflow() -> None:
    assert {case["tensorflow_version"] for case in CASES} == {"2.21.0"}
    assert len(CASES) == 30

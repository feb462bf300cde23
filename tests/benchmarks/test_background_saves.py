"""The benchmark of saves in the background works: its table on known numbers, and a run of toy size."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import background_saves
from benchmarks.background_saves import Times


def test_table_tells_medians_and_blocked_times_in_those_of_a_copy() -> None:
    found = {
        "copy of the same bytes": [Times(0.1, 0.1)] * 3,
        "torchsaver": [Times(0.11, 2.0), Times(0.12, 3.0), Times(0.4, 4.0)],
    }
    assert background_saves.table(found)[2:] == [
        "| copy of the same bytes | 100.0 (100.0-100.0) | 1.00 |  |",
        "| torchsaver | 120.0 (110.0-400.0) | 1.20 | 3,000.0 (2,000.0-4,000.0) |",
    ]


@pytest.mark.filterwarnings("ignore")  # of async_save
def test_run_of_toy_size_times_everything_and_leaves_nothing(tmp_path: Path) -> None:
    found = background_saves.measure(1_000_000, 2, str(tmp_path), lambda _: None)
    assert len(found) == 6
    for times in found.values():
        assert len(times) == 2
        assert all(0 < each.blocked <= each.total for each in times)
    assert os.listdir(tmp_path) == []

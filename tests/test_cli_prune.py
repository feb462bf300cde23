"""`torchsaver prune`: what it prints, its exit codes, and that it removes what it says and no more."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from faults.crash_states import snapshot

import torchsaver as ts
from torchsaver.cli import main


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    saver = ts.Saver({"w": torch.ones(4)}, max_to_keep=9)
    for step, (loss, accuracy) in {1: (0.9, 0.1), 2: (0.3, 0.8), 10: (0.7, 0.9), 11: (0.5, 0.7)}.items():
        saver.save("run/m", step, metrics={"loss": loss, "top:1": accuracy})
    return tmp_path / "run"


def _there(directory: Path) -> list[int]:
    return sorted(int(path.name[2:].removesuffix(".safetensors")) for path in directory.glob("m-*"))


def _printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    found = capsys.readouterr()
    assert found.err == ""
    return found.out.splitlines()


def test_prints_why_each_stays_or_goes_and_the_bytes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nbytes = sum((run / f"m-{step}.safetensors").stat().st_size for step in (1, 10))
    before = snapshot(str(run))
    assert main(["prune", "run", "--latest", "1", "--best", "loss", "--dry-run"]) == 0
    planned = _printed(capsys)
    assert snapshot(str(run)) == before
    assert main(["prune", "run", "--latest", "1", "--best", "loss"]) == 0
    lines = _printed(capsys)
    assert lines[:-1] == planned[:-1]
    assert [line.split(":")[0] for line in lines[:-1]] == [
        "run/m-1 goes",
        "run/m-2 stays",
        "run/m-10 goes",
        "run/m-11 stays",
    ]
    assert lines[1] == "run/m-2 stays: number 1 by min loss, 0.3"
    assert planned[-1] == f"2 of 4 checkpoints, {nbytes:,} bytes would go; nothing was removed"
    assert lines[-1] == f"2 of 4 checkpoints, {nbytes:,} bytes removed"
    assert _there(run) == [2, 11]


@pytest.mark.parametrize(
    ("options", "stays"),
    [
        (["--latest", "2"], [10, 11]),
        (["--best", "loss:2"], [2, 11]),
        (["--best", "loss:1:max"], [1, 11]),
        (["--best", "loss:max"], [1, 11]),
        (["--best", "top:1:1:max"], [10, 11]),
        (["--best", "loss", "--best", "loss:1:max"], [1, 2, 11]),
        (["--every-steps", "10"], [10, 11]),
        (["--every-hours", "0.5"], [1, 11]),
        (["--pin", "m-2", "--pin", "m-10"], [2, 10, 11]),
    ],
    ids=str,
)
def test_options_are_the_policies(run: Path, options: list[str], stays: list[int]) -> None:
    assert main(["prune", "run", *options]) == 0
    assert _there(run) == stays


def test_json_has_a_row_for_each_with_its_bytes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nbytes = (run / "m-1.safetensors").stat().st_size
    assert main(["prune", "run", "--latest", "3", "--json", "--dry-run"]) == 0
    found = json.loads("\n".join(_printed(capsys)))
    assert (found["path"], found["dry_run"], len(found["checkpoints"])) == ("run", True, 4)
    first = found["checkpoints"][0]
    assert first.keys() == {"save_path", "keep", "reason", "freed_bytes"}
    assert (first["save_path"], first["keep"], first["freed_bytes"]) == ("run/m-1", False, nbytes)
    assert [row["freed_bytes"] for row in found["checkpoints"][1:]] == [0, 0, 0]


def test_other_state_file_is_asked_for(run: Path) -> None:
    os.rename(run / "checkpoint", run / "other")
    assert main(["prune", "run", "--latest", "1"]) == 0
    assert _there(run) == [1, 2, 10, 11]
    assert main(["prune", "run", "--latest", "1", "--latest-filename", "other"]) == 0
    assert _there(run) == [11]


def test_directory_without_checkpoints_is_fine_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", str(tmp_path), "--latest", "1"]) == 0
    assert _printed(capsys) == ["0 of 0 checkpoints, 0 bytes removed"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "say what to keep"),
        (["--dry-run", "--json"], "say what to keep"),
        (["--latest", "0"], "0 is below 1"),
        (["--latest", "x"], "invalid"),
        (["--every-hours", "nan"], "nan is not above 0"),
        (["--every-hours", "-1"], "expected one argument"),
        (["--every-hours", "0"], "0 is not above 0"),
        (["--best", "loss:0"], "0 is below 1"),
        (["--pin", "run/m-1"], "without the directory"),
        (["--pin", "m-3"], "no checkpoint 'm-3' to pin"),
        (["--best", "los"], "no checkpoint has the metric 'los'; nearest: 'loss'"),
        (["--best", "top:1:max"], "no checkpoint has the metric 'top'"),  # 1 is a number
    ],
    ids=str,
)
def test_wrong_usage_is_exit_code_2_and_removes_nothing(
    run: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "expected one" in words:
        words = "not above 0"  # from Python 3.12 on -1 is taken for a number
    with pytest.raises(SystemExit) as ended:
        main(["prune", "run", *options])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
    assert _there(run) == [1, 2, 10, 11]


@pytest.mark.parametrize("what", ["no directory", "a file", "nothing holds"])
def test_failure_is_exit_code_1_with_one_line(run: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = {"no directory": "none", "a file": "run/m-1.safetensors"}.get(what, "run")
    if what == "nothing holds":
        for file in run.glob("m-*"):
            file.write_bytes(b"\0" * 9)
    assert main(["prune", path, "--latest", "1"]) == 1
    found = capsys.readouterr()
    assert found.out == ""
    (line,) = [line for line in found.err.splitlines() if line.startswith("torchsaver: ")]
    assert "run" in line or "none" in line


def test_name_that_would_steer_a_terminal_is_shown_escaped(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ts.Saver({"w": torch.ones(1)}).save("run/\x1b[2J", 1)
    assert main(["prune", "run", "--latest", "1", "--dry-run"]) == 0
    assert all("\x1b" not in line for line in _printed(capsys))

"""Every recorded scenario of the real Saver replays through the public API; each deliberate exception is named here."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from golden.driver import Driver
from golden.replay import Clock, differences

SCENARIOS = json.loads(Path(__file__).with_name("saver.json").read_text())["scenarios"]

# Scenarios marked `must` that differ on purpose. save_relative_paths is True here and False in TF, so that a moved or
# copied directory keeps working; with TF's default given, each of them replays exactly, which is tested too.
_RELATIVE = "the state file's paths are relative to it"
RELATIVE_PATHS = {
    "two_savers_two_state_files": _RELATIVE,
    "one_saver_many_directories": _RELATIVE,
    "told_list_is_not_checked": _RELATIVE,
    "odd_characters_in_names": _RELATIVE,
    "control_characters_in_names": _RELATIVE,
    "custom_state_file": _RELATIVE,
    "state_text_absolute": _RELATIVE,
    "move_absolute_directory": "a directory saved under an absolute path can be moved",
}
# Other scenarios marked `must` that differ on purpose, in their last operation alone.
STRICTER = {
    "init_scope_is_whole_part": "a scope that no variable is in is an error: TF goes on, and a typo trains from scratch",
}
# Scenarios marked `tf_quirk`, where TF itself is unsafe or unclear: what is done instead.
QUIRKS = {
    "keep_negative": "a negative max_to_keep is refused: TF deletes each checkpoint right after writing it",
    "alias_absolute_then_relative": "two spellings are one checkpoint: TF deletes the file it has just written",
    "glob_in_name_deletes_others": "names are literal: TF takes ? for a wildcard and deletes other checkpoints",
    "hours_none_is_zero": "None switches the hours rule off: in TF it keeps every file",
    "bytes_and_pathlib_paths": "os.PathLike is taken, and a bool is no step",
    "wildcards_in_names": "names are literal: TF cannot find [x] again",
    "parent_directory_missing": "all missing directories are made: TF makes exactly one",
    "parent_directory_two_missing": "all missing directories are made: TF makes exactly one",
    "restore_shape_mismatch": "nothing is restored on a mismatch: TF assigns the other variables",
    "var_list_tf_only_limits": "generators and plain tensors under a key are taken: they are the idiom here",
}


def _run(scenario: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **saver_defaults: Any) -> list[str]:
    clock = Clock(scenario.get("clock_start", 1_000_000.0))
    monkeypatch.setattr(time, "time", clock.time)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    monkeypatch.chdir(tmp_path)
    driver = Driver(clock, saver_defaults)
    try:
        return differences(driver, clock, scenario, str(tmp_path.resolve()))
    finally:
        driver.close()


def _named(scenarios: list[dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("scenario", scenarios, ids=lambda scenario: scenario["name"])


@_named([s for s in SCENARIOS if s["name"] not in {**RELATIVE_PATHS, **STRICTER, **QUIRKS}])
def test_recorded_scenario_replays_exactly(
    scenario: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _run(scenario, tmp_path, monkeypatch) == []


@_named([s for s in SCENARIOS if s["name"] in RELATIVE_PATHS])
def test_scenario_with_absolute_paths_replays_exactly_with_tf_default(
    scenario: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _run(scenario, tmp_path, monkeypatch, save_relative_paths=False) == []


@_named([s for s in SCENARIOS if s["name"] in STRICTER])
def test_stricter_scenario_differs_in_its_last_operation_alone(
    scenario: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = len(scenario["ops"]) - 1
    (line,) = _run(scenario, tmp_path, monkeypatch)
    assert line.split()[1] == str(last)
    assert "no variable is in 'empty/'" in line


@_named([s for s in SCENARIOS if s["name"] in {**RELATIVE_PATHS, **QUIRKS}])
def test_named_exception_really_differs(
    scenario: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _run(scenario, tmp_path, monkeypatch) != []


def test_exceptions_are_named_for_what_they_are() -> None:
    ports = {scenario["name"]: scenario["port"] for scenario in SCENARIOS}
    assert {ports[name] for name in [*RELATIVE_PATHS, *STRICTER]} == {"must"}
    assert {ports[name] for name in QUIRKS} == {"tf_quirk"}
    assert len(SCENARIOS) == 133

"""Whatever call fails while policies keep checkpoints and aliases lead to them: none leads to half a checkpoint."""

from __future__ import annotations

import copy
import logging
import os
from pathlib import Path

import pytest
from faults import crash_states
from faults.dying_disk import Fault, faults, install
from faults.promises import FORMS, assign, make_repeatable, tensors, value_of

import torchsaver as ts
from torchsaver.storage import paths

LOSSES = {1: 0.5, 2: 0.4, 3: 0.9, 4: 0.3, 5: 0.8}
PREPARED, ACTED, AFTER = (1, 2, 3), 4, 5  # steps; 4, the new best, is saved on the failing disk


def _saver(shard_bytes: int | None) -> ts.Saver:
    return ts.Saver(
        tensors(-1.0),
        keep=[ts.Latest(2, alias="last"), ts.Best("loss", 1, alias="best")],
        max_shard_bytes=shard_bytes,
    )


def _save(saver: ts.Saver, directory: str, step: int) -> None:
    """Save the step itself as the value."""
    values = saver._variables.now().tensors
    assign(values, float(step))
    saver.save(os.path.join(directory, "m"), step, metrics={"loss": LOSSES[step]})


def _value(prefix: str) -> float:
    with ts.load_checkpoint(prefix) as reader:
        reader.verify()
        return value_of({key: reader.get_tensor(key) for key in reader.keys()})


def _acted(saver: ts.Saver, directory: str) -> int:
    """Save, and return the last step whose save has returned."""
    try:
        _save(saver, directory, ACTED)
    except (OSError, KeyboardInterrupt):
        return PREPARED[-1]
    return ACTED


def _wrong(directory: str, acked: int) -> list[str]:
    """Return what is wrong after the fault."""
    wrong = []
    latest, newest = ts.latest_checkpoint(directory), ts.newest_valid_checkpoint(directory)
    again = _saver(None)
    report = again.resume(directory)
    resumed = None if report is None else report.save_path
    for what, prefix in (("latest", latest), ("newest", newest), ("resumed", resumed)):
        if prefix is None or not os.path.basename(prefix).startswith("m-") or _value(prefix) < acked:
            wrong.append(f"{what} is {prefix}, and {acked} was saved")
    state = ts.get_checkpoint_state(directory)
    listed = [] if state is None else state.all_model_checkpoint_paths
    for prefix in listed:
        if paths.find_checkpoint(prefix) is None or _value(prefix) != int(prefix.rsplit("-", 1)[1]):
            wrong.append(f"{prefix} is listed, and not whole")
    for alias in ("last", "best"):
        prefix = os.path.join(directory, alias)
        if paths.find_checkpoint(prefix) is not None:
            try:
                _value(prefix)
            except (ts.TorchSaverError, AssertionError) as error:
                wrong.append(f"{alias} leads to {error!r}")
    best = min(listed, key=lambda prefix: LOSSES[int(prefix.rsplit("-", 1)[1])])
    if LOSSES[int(best.rsplit("-", 1)[1])] > min(LOSSES[step] for step in range(1, acked + 1)):
        wrong.append(f"the best that is left is {best}")
    _save(again, directory, AFTER)
    if _value(os.path.join(directory, "last")) != AFTER or _value(os.path.join(directory, "best")) != _value(best):
        wrong.append("the next save does not make the aliases lead where they should")
    return wrong


@pytest.mark.parametrize(("old", "new"), [("single", "single"), ("sharded", "sharded"), ("sharded", "single")])
def test_any_fault_leaves_the_newest_the_best_and_whole_aliases(
    tmp_path: Path, old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logging.disable(logging.WARNING)
    try:
        found = _all_faults(tmp_path, FORMS[old], FORMS[new])
    finally:
        logging.disable(logging.NOTSET)
    assert [text for text in found if text] == []


def _all_faults(root: Path, old: int | None, new: int | None) -> list[str]:
    directory = str(root / "run")
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        make_repeatable(patch)
        saver = _saver(old)
        for step in PREPARED:
            _save(saver, directory, step)
        saver = _saver(new)
        saver.resume(directory)
    start = crash_states.snapshot(str(root))
    calls, _, _ = _played(root, start, saver, None)
    found, known = [], {}
    for fault in faults(calls):
        _, acked, tree = _played(root, start, saver, fault)
        if (tree, acked) not in known:
            known[tree, acked] = _wrong(directory, acked)
        found += [f"{fault}: {text}" for text in known[tree, acked]]
    assert len(known) > 10
    return found


def _played(
    root: Path, start: crash_states.Tree, saver: ts.Saver, fault: Fault | None
) -> tuple[list[str], int, crash_states.Tree]:
    """Return the calls made, the last step whose save returned, and what the disk holds after it."""
    crash_states.materialise(start, str(root))
    playing = copy.deepcopy(saver)
    with pytest.MonkeyPatch.context() as patch:
        make_repeatable(patch)
        dying = install(patch, fault)
        acked = _acted(playing, str(root / "run"))
    return dying.calls, acked, crash_states.snapshot(str(root))

"""Saves in the background: what is written is what was there at save(), in the order of a save, and no error is lost."""

from __future__ import annotations

import copy
import errno
import gc
import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults.dying_disk import faults, install
from faults.promises import FORMS, assign, make_repeatable
from faults.test_dying_disk import SaveAfter, Stage
from roundtrip import Held, differing, random, stored
from torch import nn

import torchsaver as ts
from torchsaver import rotation
from torchsaver.formats.tensor_bytes import DTYPE_NAMES
from torchsaver.saving import background
from torchsaver.saving import writer as saving
from torchsaver.saving.host_copies import HostCopies
from torchsaver.saving.writer import SavedCheckpoint
from torchsaver.storage import disk

PATIENCE_SECS = 10.0  # what never comes would take this long

# Where a writer can be held, or fail, in the order in which a save comes by.
STAGES: dict[str, tuple[Any, str]] = {
    "begin": (saving, "make_ready"),
    "create": (disk.NewFile, "open"),
    "write": (disk.NewFile, "write"),
    "sync": (disk.NewFile, "sync"),
    "publish": (disk.Stage, "publish"),
    "state file": (rotation, "write_state"),
}


def until(event: threading.Event) -> None:
    """Wait for what must come."""
    assert event.wait(PATIENCE_SECS)


class Gate:
    """Holds whoever calls a function until it is opened.

    Attributes:
        reached: Set when somebody is held.
    """

    def __init__(self, patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.reached, self._is_open = threading.Event(), threading.Event()
        original = getattr(owner, name)

        def held(*args: Any, **kwargs: Any) -> Any:
            self.reached.set()
            until(self._is_open)
            return original(*args, **kwargs)

        patch.setattr(owner, name, held)

    def open(self) -> None:
        """Let everybody go on, from now on."""
        self._is_open.set()


@pytest.fixture(autouse=True)
def _syncing_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # takes most of the time, and changes no byte


@pytest.fixture(autouse=True)
def _nothing_goes_on_afterwards() -> Iterator[None]:
    assert not background._unfinished
    yield
    for each in list(background._unfinished):
        each.join()
        each.forget()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A gate at the begin of a save's work."""
    gate = Gate(monkeypatch, *STAGES["begin"])
    yield gate
    gate.open()


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when somebody waits for a save that is going on."""
    event, original = threading.Event(), background._Work.wait

    def wait(work: background._Work) -> None:
        if not work.is_done:
            event.set()
        original(work)

    monkeypatch.setattr(background._Work, "wait", wait)
    monkeypatch.setattr(background, "_LONGEST_WAIT_SECS", 1e-4)
    return event


class Caller:
    """Calls a function in another thread."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.result: Any = None
        self._function = function
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.result = self._function()

    @property
    def is_back(self) -> bool:
        return not self._thread.is_alive()

    def join(self) -> Any:
        self._thread.join(PATIENCE_SECS)
        assert self.is_back
        return self.result


def one(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"w": torch.full((3,), value)}


def value_of(prefix: str | os.PathLike[str]) -> list[float]:
    return stored(str(prefix))["w"].tolist()


def full_disk(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "m")


# ---- the order of a save


def noting(patch: pytest.MonkeyPatch, log: list[tuple[str, int]], owner: Any, name: str) -> None:
    original = getattr(owner, name)

    def noted(*args: Any, **kwargs: Any) -> Any:
        log.append((name, threading.get_ident()))
        return original(*args, **kwargs)

    patch.setattr(owner, name, noted)


def test_save_returns_first_and_then_one_other_thread_publishes_lists_removes_and_calls_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[tuple[str, int]] = []
    records: list[SavedCheckpoint] = []

    def on_saved(saved: SavedCheckpoint) -> None:
        log.append(("on_saved", threading.get_ident()))
        assert ts.latest_checkpoint(tmp_path) == saved.save_path
        records.append(saved)

    saver = ts.Saver(one(), background=True, max_to_keep=1, on_saved=on_saved)
    saver.save(tmp_path / "m", 1)
    saver.wait()
    log.clear()
    gate = Gate(monkeypatch, *STAGES["begin"])
    for owner, name in ((disk.Stage, "publish"), (rotation, "write_state"), (rotation, "remove_unpinned")):
        noting(monkeypatch, log, owner, name)
    assert saver.save(tmp_path / "m", 2, metrics={"loss": 0.5}) == str(tmp_path / "m-2")
    until(gate.reached)
    assert log == []
    assert len(records) == 1
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", "m-1.safetensors"]
    assert ts.latest_checkpoint(tmp_path) == str(tmp_path / "m-1")
    gate.open()
    saver.wait()
    # The state file is written as a checkpoint is: published, too.
    assert [name for name, _ in log] == ["publish", "write_state", "publish", "remove_unpinned", "on_saved"]
    assert len({thread for _, thread in log} - {threading.get_ident()}) == 1
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", "m-2.safetensors"]
    assert (records[1].save_path, records[1].global_step, records[1].bytes) == (str(tmp_path / "m-2"), 2, 12)
    assert records[1].metrics == {"loss": 0.5}
    assert 0 < records[1].blocked_secs < records[1].total_secs
    assert threading.active_count() == 1


def test_on_saved_of_a_blocking_save_is_called_before_save_returns(tmp_path: Path) -> None:
    records: list[SavedCheckpoint] = []
    ts.Saver(one(), on_saved=records.append).save(tmp_path / "m", 1)
    assert [record.global_step for record in records] == [1]
    assert records[0].blocked_secs == records[0].total_secs


def test_on_saved_may_ask_its_saver_and_not_save(tmp_path: Path) -> None:
    found: list[Any] = []

    def on_saved(_: SavedCheckpoint) -> None:
        saver.wait()
        found.append((saver.last_checkpoints, saver.latest_checkpoint, len(saver.plan())))
        saver.save(tmp_path / "m", 2)

    saver = ts.Saver(one(), background=True, on_saved=on_saved)
    saver.save(tmp_path / "m", 1)
    with pytest.raises(RuntimeError, match="save in the loop"):
        saver.wait()
    prefix = str(tmp_path / "m-1")
    assert found == [([prefix], prefix, 1)]
    assert saver.last_checkpoints == [prefix]


# ---- the snapshot


class Everything:
    """Tensors of every dtype and layout, a module, its optimizer, and objects with all that a state may hold."""

    def __init__(self) -> None:
        dtypes = sorted([*DTYPE_NAMES, torch.complex128], key=str)
        self.tensors = {f"dtype.{dtype}": random(dtype, 5, 3) for dtype in dtypes}
        self.tensors |= {
            "conjugated": random(torch.complex64, 3, 5).conj(),
            "negated": torch._neg_view(random(torch.float32, 7)),
            "transposed": random(torch.float32, 6, 4).t(),
            "expanded": random(torch.float32, 1, 4).expand(3, 4),
            "scalar": random(torch.float64),
            "empty": torch.empty(0, 3),
            "large": random(torch.float32, 3 << 18),
        }
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.train()
        self.array, self.metadata = np.arange(4.0), {"names": ["a"], "more": {"b": 1}}
        self.state = {"deep": [{"list": [1, 2], "set": {3}}, (bytearray(b"x"), [self.array])], "tensor": torch.ones(2)}

    def train(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.randn(8, 4)).square().sum().backward()
        self.optimizer.step()

    def var_list(self) -> dict[str, Any]:
        objects = {"model": self.model, "optimizer": self.optimizer, "held": Held(self.state), "rng": ts.RNGState()}
        return {**self.tensors, **objects}

    def memory(self) -> list[torch.Tensor]:
        moments = [each for state in self.optimizer.state.values() for each in state.values()]
        return [*self.tensors.values(), *self.model.state_dict().values(), *moments, self.state["tensor"]]

    def change(self) -> None:
        """Change all of it, in place."""
        torch.rand(1)  # changes the generator
        for tensor in self.memory():
            torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).bitwise_not_()
        self.array += 1
        deep = self.state["deep"]
        deep[0]["list"].append(3)
        deep[0]["set"].add(4)
        deep[1][0].extend(b"y")
        deep.append("more")
        self.state["new"] = True
        self.optimizer.param_groups[0]["lr"] = 7.0
        self.metadata["names"].append("z")
        self.metadata["more"]["b"] = 2


@pytest.mark.parametrize("stage", ["begin", "create", "write", "sync", "publish"])
@pytest.mark.parametrize("max_shard_bytes", [None, 1 << 20])
def test_everything_changed_right_after_save_changes_nothing_of_what_is_written(
    stage: str, max_shard_bytes: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1e9)
    everything = Everything()
    saver = ts.Saver(everything.var_list(), background=True, max_shard_bytes=max_shard_bytes)
    blocking = ts.Saver(everything.var_list(), max_shard_bytes=max_shard_bytes)

    def files(name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    for turn in ("new", "used again"):  # of the memory for copies
        metrics, metadata = {"loss": 1.0}, everything.metadata
        expected = copy.deepcopy(metadata)
        blocking.save(tmp_path / turn / "blocking" / "m", 3, metrics=metrics, metadata=metadata, write_state=False)
        with pytest.MonkeyPatch.context() as patch:
            gate = Gate(patch, *STAGES[stage])
            prefix = saver.save(tmp_path / turn / "m", 3, metrics=metrics, metadata=metadata, write_state=False)
            until(gate.reached)
            everything.change()
            metrics["loss"] = 2.0
            gate.open()
            saver.wait()
        shutil.move(tmp_path / turn / "blocking", tmp_path / f"{turn} blocking")
        assert files(turn) == files(f"{turn} blocking")
        assert prefix is not None
        with ts.load_checkpoint(prefix) as reader:
            assert reader.metadata == expected


# ---- one at a time


def test_next_save_waits_for_the_one_that_goes_on(tmp_path: Path, gate: Gate, waiting: threading.Event) -> None:
    values = one()
    saver = ts.Saver(values, background=True)
    saver.save(tmp_path / "m", 1)
    until(gate.reached)
    second = Caller(lambda: saver.save(tmp_path / "m", 2))
    until(waiting)
    assert not second.is_back
    values["w"].fill_(2)  # what is there when its turn comes is what it saves
    gate.open()
    assert second.join() == str(tmp_path / "m-2")
    saver.wait()
    assert [value_of(prefix) for prefix in saver.last_checkpoints] == [[1, 1, 1], [2, 2, 2]]


def test_save_that_is_skipped_returns_none_and_leaves_no_trace(tmp_path: Path, gate: Gate) -> None:
    saver = ts.Saver(one(), background=True, when_busy="skip", max_to_keep=1)
    saver.save(tmp_path / "m", 1)
    until(gate.reached)
    assert saver.save(tmp_path / "elsewhere" / "m", 2) is None
    gate.open()
    assert saver.last_checkpoints == [str(tmp_path / "m-1")]
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", "m-1.safetensors"]
    assert saver.save(tmp_path / "m", 3) == str(tmp_path / "m-3")
    assert saver.last_checkpoints == [str(tmp_path / "m-3")]


@pytest.mark.parametrize("relative_paths", [True, False])
@pytest.mark.parametrize("held_at", ["begin", "publish"])
def test_save_under_a_relative_path_goes_where_that_led_when_save_was_called(
    held_at: str, relative_paths: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for place in (here, there):
        (place / "run").mkdir(parents=True)
    saver = ts.Saver(one(), background=True, max_to_keep=2, save_relative_paths=relative_paths)
    for step in (1, 2, 3):
        monkeypatch.chdir(here)
        with monkeypatch.context() as patch:
            gate = Gate(patch, *STAGES[held_at])
            assert saver.save("run/m", step) == f"run/m-{step}"
            until(gate.reached)
            os.chdir(there)
            gate.open()
            saver.close()
    assert sorted(path.name for path in (here / "run").iterdir()) == [
        "checkpoint",
        "m-2.safetensors",
        "m-3.safetensors",
    ]
    assert list((there / "run").iterdir()) == []
    assert saver.last_checkpoints == ["run/m-2", "run/m-3"]  # as given
    listed = ts.get_checkpoint_state(here / "run")
    assert listed is not None
    assert listed.all_model_checkpoint_paths == [str(here / "run" / name) for name in ("m-2", "m-3")]


def test_memory_of_copies_is_used_again_until_shapes_change(tmp_path: Path) -> None:
    def save() -> tuple[int, object]:
        saver.save(tmp_path / "m")
        saver.wait()
        assert (
            differing({key: found for key, found in stored(str(tmp_path / "m")).items() if key in named()}, named())
            == []
        )
        return saver._writer._copies.generation, saver._writer._prepared.plans  # type: ignore[union-attr]

    def named() -> dict[str, torch.Tensor]:
        return {f"model.{key}": tensor.detach() for key, tensor in model.named_parameters()}

    model = nn.Linear(4, 4)
    optimizer = torch.optim.Adam(model.parameters())
    saver = ts.Saver({"model": model, "optimizer": optimizer, "rng": ts.RNGState()}, background=True)
    first = save()
    with torch.no_grad():
        model.weight.add_(1)
    assert save() == first
    model(torch.ones(4)).sum().backward()
    optimizer.step()  # makes its state
    second = save()
    assert second != first
    optimizer.step()
    assert save() == second
    model.half()
    assert save() != second


def test_save_after_close_works_and_close_gives_the_memory_back(tmp_path: Path) -> None:
    saver = ts.Saver(one(), background=True)
    for step in (1, 2):
        saver.save(tmp_path / "m", step)
        saver.close()
        assert saver._writer._copies._copies == {}  # type: ignore[union-attr]
    assert [value_of(prefix) for prefix in saver.last_checkpoints] == [[1, 1, 1]] * 2


# ---- errors

TELLING: dict[str, Callable[[ts.Saver, Path], object]] = {
    "next save": lambda saver, path: saver.save(path / "m", 9),
    "wait": lambda saver, _: saver.wait(),
    "close": lambda saver, _: saver.close(),
    "end of with": lambda saver, _: saver.__exit__(None, None, None),
}


def fail_after_a_save(saver: ts.Saver, directory: Path) -> None:
    with saver:
        saver.save(directory / "m")
        raise ZeroDivisionError


@pytest.mark.parametrize("stage", [*STAGES, "on_saved"])
@pytest.mark.parametrize("telling", TELLING)
def test_error_is_told_once_and_leaves_all_as_it_was_and_the_next_save_works(
    stage: str, telling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callbacks: dict[str, Callable[..., object]] = {"on_saved": lambda *_: None}
    values = one()
    saver = ts.Saver(values, background=True, on_saved=lambda saved: callbacks["on_saved"](saved, None))
    saver.save(tmp_path / "m", 1)
    saver.wait()
    values["w"].fill_(2)
    with pytest.MonkeyPatch.context() as patch:
        if stage == "on_saved":
            patch.setitem(callbacks, "on_saved", full_disk)
        else:
            patch.setattr(*STAGES[stage], full_disk)
        saver.save(tmp_path / "m", 2)
        saver._writer.background.join()
    listed = ["m-1", "m-2"] if stage == "on_saved" else ["m-1"]
    assert saver.last_checkpoints == [str(tmp_path / name) for name in listed]
    assert ts.latest_checkpoint(tmp_path) == str(tmp_path / listed[-1])
    with pytest.raises(OSError, match="No space left"):
        TELLING[telling](saver, tmp_path)
    assert saver.last_checkpoints == [str(tmp_path / name) for name in listed]
    saver.wait()  # told
    saver.close()
    assert not background._unfinished
    values["w"].fill_(3)
    saver.save(tmp_path / "m", 3)
    assert saver.last_checkpoints == [str(tmp_path / name) for name in (*listed, "m-3")]
    assert value_of(tmp_path / "m-3") == [3, 3, 3]


def test_error_does_not_replace_one_of_the_with_block_and_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(*STAGES["write"], full_disk)
    saver = ts.Saver(one(), background=True)
    with pytest.raises(ZeroDivisionError):
        fail_after_a_save(saver, tmp_path)
    assert [(record.levelno, record.message) for record in caplog.records] == [
        (logging.ERROR, "a save in the background has failed, too")
    ]
    assert "No space left" in caplog.text
    saver.wait()


def test_with_block_is_left_when_the_save_is_done(tmp_path: Path, gate: Gate, waiting: threading.Event) -> None:
    def train() -> None:
        with ts.Saver(one(), background=True) as saver:
            saver.save(tmp_path / "m")

    caller = Caller(train)
    until(waiting)
    assert not caller.is_back
    gate.open()
    caller.join()
    assert value_of(tmp_path / "m") == [1, 1, 1]


def test_save_where_no_thread_can_be_had_is_done_by_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    threads: list[int] = []
    saver = ts.Saver(one(), background=True, on_saved=lambda _: threads.append(threading.get_ident()))
    saver.save(tmp_path / "m", 1)
    assert value_of(tmp_path / "m-1") == [1, 1, 1]
    assert threads == [threading.get_ident()]
    monkeypatch.setattr(*STAGES["write"], full_disk)
    with pytest.raises(OSError, match="No space left"):
        saver.save(tmp_path / "m", 2)
    saver.wait()
    assert saver.last_checkpoints == [str(tmp_path / "m-1")]


def test_copies_are_freed_by_the_thread_before_anybody_knows_that_it_is_done() -> None:
    # The interpreter may end as soon as somebody does, and with it, in the midst of torch's code, the thread.
    freed: list[tuple[bool, bool]] = []
    work: background._Work

    class Copies:
        def __del__(self) -> None:
            freed.append((work.is_done, threading.current_thread() is threading.main_thread()))

        def __call__(self) -> None:
            pass

    work = background._Work(Copies())
    thread = threading.Thread(target=work.run)
    thread.start()
    work.wait()
    thread.join()
    assert freed == [(False, False)]


@pytest.mark.parametrize("has_begun", [True, False])
def test_interrupt_while_the_thread_starts_leaves_a_save_that_goes_on_or_none(
    has_begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    with pytest.MonkeyPatch.context() as patch:
        original = threading.Thread.start

        def start(thread: threading.Thread) -> None:
            threads.append(thread)
            if has_begun:
                original(thread)
                saver._writer.background.join()
            raise KeyboardInterrupt

        patch.setattr(threading.Thread, "start", start)
        saver = ts.Saver(one(), background=True)
        with pytest.raises(KeyboardInterrupt):
            saver.save(tmp_path / "m", 1)
    if not has_begun:
        threads[0].start()  # the interrupt came before; it must not touch the copies by now
        threads[0].join()
    assert saver.last_checkpoints == ([str(tmp_path / "m-1")] if has_begun else [])
    saver.save(tmp_path / "m", 2)
    assert saver.latest_checkpoint == str(tmp_path / "m-2")


# ---- what waits

DRAINING: dict[str, Callable[[ts.Saver, Path], Any]] = {
    "restore": lambda saver, path: saver.restore(path / "m-1").global_step,
    "resume": lambda saver, path: saver.resume(path).global_step,  # type: ignore[union-attr]
    "last_checkpoints": lambda saver, _: saver.last_checkpoints,
    "latest_checkpoint": lambda saver, _: saver.latest_checkpoint,
    "plan": lambda saver, _: [decision.record.prefix for decision in saver.plan()],
    "set_last_checkpoints": lambda saver, path: saver.set_last_checkpoints([str(path / "m-1")]),
    "set_last_checkpoints_with_time": lambda saver, path: saver.set_last_checkpoints_with_time(
        [(str(path / "m-1"), 1)]
    ),
    "recover_last_checkpoints": lambda saver, path: saver.recover_last_checkpoints([path / "m-1"]),
    "wait": lambda saver, _: saver.wait(),
    "close": lambda saver, _: saver.close(),
    "deepcopy": lambda saver, _: copy.deepcopy(saver).last_checkpoints,
    "pickle": lambda saver, _: pickle.loads(pickle.dumps(saver)).last_checkpoints,
}


@pytest.mark.parametrize("draining", DRAINING)
def test_what_needs_the_save_waits_for_it(draining: str, tmp_path: Path, gate: Gate, waiting: threading.Event) -> None:
    saver = ts.Saver(one(), background=True)
    saver.save(tmp_path / "m", 1)
    until(gate.reached)
    caller = Caller(lambda: DRAINING[draining](saver, tmp_path))
    until(waiting)
    assert not caller.is_back
    gate.open()
    prefix = str(tmp_path / "m-1")
    assert caller.join() in (None, 1, prefix, [prefix])
    assert saver.last_checkpoints == [prefix]
    assert value_of(prefix) == [1, 1, 1]


@pytest.mark.parametrize("draining", ["restore", "resume", "last_checkpoints", "plan"])
def test_what_waits_leaves_an_error_for_wait(draining: str, tmp_path: Path) -> None:
    saver = ts.Saver(one(), background=True)
    saver.save(tmp_path / "m", 1)
    saver.wait()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*STAGES["write"], full_disk)
        saver.save(tmp_path / "m", 2)
        DRAINING[draining](saver, tmp_path)
    with pytest.raises(OSError, match="No space left"):
        saver.wait()


# ---- signals


def test_interrupt_while_waiting_lets_the_save_go_on(tmp_path: Path, gate: Gate, waiting: threading.Event) -> None:
    def interrupt() -> None:
        until(waiting)
        os.kill(os.getpid(), signal.SIGINT)

    saver = ts.Saver(one(), background=True)
    saver.save(tmp_path / "m", 1)
    until(gate.reached)
    caller = Caller(interrupt)
    with pytest.raises(KeyboardInterrupt):
        saver.wait()
    caller.join()
    assert saver._writer.background.is_busy  # Thread.join would take the thread for dead, before Python 3.13
    gate.open()
    saver.wait()
    assert value_of(tmp_path / "m-1") == [1, 1, 1]
    assert saver.last_checkpoints == [str(tmp_path / "m-1")]


def test_interrupt_while_the_with_block_waits_is_not_taken_for_an_error_of_the_save(
    tmp_path: Path, gate: Gate, waiting: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupt() -> None:
        until(waiting)
        os.kill(os.getpid(), signal.SIGINT)

    caller = Caller(interrupt)
    saver = ts.Saver(one(), background=True)
    with pytest.raises(KeyboardInterrupt):
        fail_after_a_save(saver, tmp_path)
    caller.join()
    assert caplog.records == []
    gate.open()
    saver.close()
    assert value_of(tmp_path / "m") == [1, 1, 1]


@pytest.mark.parametrize("outer", ["wait", "save"])
def test_signal_handler_that_saves_while_a_save_is_waited_for_saves_after_it(
    outer: str, tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, original = [threading.Event(), threading.Event()], background._Work.wait

    def wait(work: background._Work) -> None:
        if not work.is_done and (left := [event for event in waits if not event.is_set()]):
            left[0].set()
        original(work)

    monkeypatch.setattr(background._Work, "wait", wait)
    values = one()
    saver = ts.Saver(values, background=True)

    def handler(*_: Any) -> None:
        values["w"].fill_(2)
        saver.save(tmp_path / "m", 2)
        values["w"].fill_(3)

    def disturb() -> None:
        until(waits[0])
        os.kill(os.getpid(), signal.SIGUSR1)
        until(waits[1])
        gate.open()

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        saver.save(tmp_path / "m", 1)
        until(gate.reached)
        caller = Caller(disturb)
        if outer == "wait":
            saver.wait()
            assert not saver._writer.background.is_busy
        saver.save(tmp_path / "m", 3)
        caller.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert saver.last_checkpoints == [str(tmp_path / f"m-{step}") for step in (1, 2, 3)]
    assert [value_of(tmp_path / f"m-{step}") for step in (1, 2, 3)] == [[step] * 3 for step in (1, 2, 3)]


def test_signal_handler_that_saves_while_values_are_copied_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver, original, refused = ts.Saver(one(), background=True), HostCopies.take, []

    def take(*args: Any) -> Any:
        try:
            saver.save(tmp_path / "m", 2)
        except RuntimeError as error:
            refused.append(error)
        return original(*args)

    monkeypatch.setattr(HostCopies, "take", take)
    saver.save(tmp_path / "m", 1)
    assert "save in the loop" in str(refused[0])
    assert saver.last_checkpoints == [str(tmp_path / "m-1")]
    monkeypatch.undo()
    saver.save(tmp_path / "m", 3)
    assert saver.latest_checkpoint == str(tmp_path / "m-3")


# ---- savers


def test_copy_of_a_saver_saves_in_the_background_with_memory_of_its_own(tmp_path: Path) -> None:
    saver = ts.Saver(nn.Linear(2, 2), background=True)
    saver.save(tmp_path / "m", 1)
    for other in (copy.deepcopy(saver), pickle.loads(pickle.dumps(saver))):
        assert other._writer.background is not saver._writer.background
        other.save(tmp_path / "m", 2)
        other.wait()
        assert other._writer._copies._copies["weight"].data_ptr() != saver._writer._copies._copies["weight"].data_ptr()  # type: ignore[union-attr]
    saver.wait()


def test_saver_that_nobody_has_any_more_finishes_its_save_and_is_gone(tmp_path: Path, gate: Gate) -> None:
    saver = ts.Saver(one(), background=True)
    saver.save(tmp_path / "m")
    until(gate.reached)
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "torchsaver")
    gone = weakref.ref(saver), weakref.ref(saver._writer)
    del saver
    gc.collect()
    gate.open()
    thread.join(PATIENCE_SECS)
    gc.collect()
    assert value_of(tmp_path / "m") == [1, 1, 1]
    assert [ref() for ref in gone] == [None, None]


def test_savers_at_work_on_one_directory_keep_their_windows(tmp_path: Path) -> None:
    values = {name: one() for name in "abc"}
    savers = {name: ts.Saver(values[name], background=True, max_to_keep=2) for name in values}
    for step in range(1, 5):
        for name, saver in savers.items():
            values[name]["w"].fill_(step)
            saver.save(tmp_path / name, step)
    for name, saver in savers.items():
        assert saver.last_checkpoints == [str(tmp_path / f"{name}-{step}") for step in (3, 4)]
        assert [value_of(prefix) for prefix in saver.last_checkpoints] == [[3, 3, 3], [4, 4, 4]]
    listed = ts.get_checkpoint_state(tmp_path).all_model_checkpoint_paths  # type: ignore[union-attr]
    assert sorted(listed) == sorted(prefix for saver in savers.values() for prefix in saver.last_checkpoints)
    assert len(os.listdir(tmp_path)) == 7


def test_sharded_and_unlisted_saves_are_whole_and_only_the_listed_ones_count(tmp_path: Path) -> None:
    values = {f"t{number}": random(torch.float32, 64, seed=number) for number in range(5)}
    saver = ts.Saver(values, background=True, max_shard_bytes=256, max_to_keep=1)
    saver.save(tmp_path / "m", 1)
    saver.save(tmp_path / "m", 2, write_state=False)
    saver.save(tmp_path / "m", 3)
    assert saver.last_checkpoints == [str(tmp_path / "m-3")]
    assert not ts.checkpoint_exists(tmp_path / "m-1")
    for step in (2, 3):
        assert differing(stored(str(tmp_path / f"m-{step}")), values) == []
    assert len(os.listdir(tmp_path)) == 2 * 6 + 1


# ---- a disk that fails


class SaveInBackground(SaveAfter):
    """A save in the background beside an older checkpoint, which then goes; the caller waits for it."""

    def _saver(self, form: str) -> ts.Saver:
        return ts.Saver(self.variables, max_to_keep=self.max_to_keep, max_shard_bytes=FORMS.get(form), background=True)

    def save(self, step: int, value: float, *, write_state: bool = True) -> None:
        super().save(step, value, write_state=write_state)
        assign(self.variables, -value)
        self.saver.wait()


@pytest.mark.parametrize("form", FORMS)
def test_whatever_call_fails_in_the_background_what_was_promised_is_there_and_the_caller_knows(
    form: str, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        make_repeatable(patch)
        stage = Stage(str(tmp_path), SaveInBackground, form, form)
    logging.disable(logging.WARNING)
    try:
        outcomes = [stage.outcome(fault) for fault in faults(stage.calls()) if not fault.sticky]
    finally:
        logging.disable(logging.NOTSET)
    assert len(outcomes) > 50
    assert [str(outcome.fault) for outcome in outcomes if not outcome.failed] == []
    wrong = {
        str(o): [*o.broken, *o.again, *o.fresh] for o in outcomes if o.broken or o.again or o.fresh or o.leaked > 0
    }
    assert wrong == {}
    assert [
        str(o) for o in outcomes if "interrupt" in o.fault.kind and not isinstance(o.error, KeyboardInterrupt)
    ] == []
    raised = [o for o in outcomes if o.error is not None and "interrupt" not in o.fault.kind]
    assert len(raised) > 20
    assert [str(o) for o in raised if not isinstance(o.error, OSError) or o.error.errno != o.fault.errno] == []


# ---- processes: each scenario is forked from one that has imported torch, and ends as it likes

SCENARIOS = r'''
import atexit, errno, gc, json, multiprocessing, os, signal, sys, threading, warnings
import torch
import torchsaver as ts
from torchsaver.saving import background
from torchsaver.saving import writer as saving
from torchsaver.storage import disk

warnings.simplefilter("ignore")  # that the process which is forked has threads
os.fsync = lambda fd: None  # takes most of the time
root = sys.argv[1]
large = {f"t{n}": torch.arange(n, n + 1_000_000, dtype=torch.float32) for n in range(3)}
small = {"w": torch.ones(3)}

def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device", "m")

def failing():
    disk.NewFile.write = full_disk
    saver = ts.Saver(small, background=True)
    saver.save("m", 1)
    return saver

def held():
    """Return what lets the next write go on."""
    event, original = threading.Event(), saving.make_ready
    def make_ready(*arguments):
        if not event.wait(60):
            os._exit(9)
        original(*arguments)
    saving.make_ready = make_ready
    return event

def fails_and_ends():
    failing()

def fails_and_exits_with_0():
    saver = failing()
    sys.exit(0)

def fails_and_raises():
    saver = failing()
    raise ValueError("an error of the program's own")

def fails_twice():
    failing(), failing()

def fails_and_is_told():
    try:
        failing().wait()
    except OSError:
        pass

def fails_in_a_handler():
    atexit.register(failing)

def fails_in_a_forked_child():
    child = multiprocessing.get_context("fork").Process(target=failing)
    child.start()
    child.join()
    print("child", child.exitcode)

def saves_and_ends():
    ts.Saver(large, background=True).save("m", 1)

def saves_and_exits_with_0():
    ts.Saver(large, background=True).save("m", 1)
    sys.exit(0)

def saves_and_raises():
    ts.Saver(large, background=True).save("m", 1)
    raise ValueError("an error of the program's own")

def saves_in_a_handler():
    atexit.register(lambda: ts.Saver(large, background=True).save("m", 1))

def saves_in_a_forked_child():
    child = multiprocessing.get_context("fork").Process(target=saves_and_ends)
    child.start()
    child.join()
    print("child", child.exitcode)

def is_interrupted_at_the_end():
    held()
    wait = background._Work.wait
    def interrupted(work):
        os.kill(os.getpid(), signal.SIGINT)
        wait(work)
    background._Work.wait = interrupted
    ts.Saver(small, background=True).save("m", 1)

def forks_while_it_saves():
    """The child neither waits nor writes nor is told; it saves on its own."""
    go_on = held()
    saver = ts.Saver(small, background=True)
    saver.save("m", 1)
    pid = os.fork()
    if pid == 0:
        assert not background._unfinished and not saver._writer.background.is_busy
        saver.wait()
        assert saver.last_checkpoints == []
        small["w"].fill_(2)
        go_on.set()
        saver.save("child", 2)
        assert saver.last_checkpoints == [os.path.join("child-2")]
        saver.save("child", 3)  # the end of the child waits for it
        return
    print("child", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    print(sorted(os.listdir()))
    small["w"].fill_(5)
    go_on.set()

def forks_after_an_error():
    """The child is not told of it; the parent is."""
    saver = failing()
    saver._writer.background.join()
    pid = os.fork()
    if pid == 0:
        saver.wait()
        return
    print("child", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    try:
        saver.wait()
    except OSError:
        print("told")

def forks_while_locks_are_held():
    """A child that ends does not let go of the locks of the parent's writer."""
    event, reached, publish = threading.Event(), threading.Event(), disk.Stage.publish
    def hold(*arguments, **keywords):
        reached.set()
        assert event.wait(60)
        publish(*arguments, **keywords)
    disk.Stage.publish = hold
    ts.Saver(small, background=True).save("m", 1)
    assert reached.wait(60)
    pid = os.fork()
    if pid == 0:
        return
    print("child", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    disk.sweep(".")  # takes what nobody has locked
    event.set()

def loads_data_while_it_saves():
    go_on = held()
    saver = ts.Saver(small, background=True)
    saver.save("m", 1)
    dataset = torch.utils.data.TensorDataset(torch.arange(8))
    loader = torch.utils.data.DataLoader(dataset, batch_size=2, num_workers=2, multiprocessing_context="fork")
    print([batch.tolist() for batch, in loader])
    go_on.set()

scenarios = {name: value for name, value in list(globals().items()) if getattr(value, "__code__", None) is not None}
for name in sys.argv[2:]:
    os.mkdir(f"{root}/{name}")
    pid = os.fork()
    if pid == 0:
        os.chdir(f"{root}/{name}")
        for fd, stream in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(f"{root}/{name}.{stream}", os.O_CREAT | os.O_WRONLY), fd)
        break
    with open(f"{root}/{name}.status", "w") as file:
        file.write(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
else:
    name = None
if name is not None:
    scenarios[name]()
'''
FAILING = ("fails_and_ends", "fails_and_exits_with_0", "fails_and_raises", "fails_in_a_handler", "fails_twice")
SAVING = ("saves_and_ends", "saves_and_exits_with_0", "saves_and_raises", "saves_in_a_handler")
OTHERS = (
    *("fails_and_is_told", "fails_in_a_forked_child", "saves_in_a_forked_child", "is_interrupted_at_the_end"),
    *("forks_while_it_saves", "forks_after_an_error", "forks_while_locks_are_held", "loads_data_while_it_saves"),
)


class Ended:
    """What a process has left.

    Attributes:
        directory: It ran there.
        status: Its exit status.
        stdout, stderr: What it wrote.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.directory = root / name
        self.status = int((root / f"{name}.status").read_text())
        self.stdout, self.stderr = ((root / f"{name}.{stream}").read_text() for stream in ("stdout", "stderr"))


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Ended]:
    """Return what gives the end of a scenario."""
    root = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-c", SCENARIOS, str(root), *FAILING, *SAVING, *OTHERS]
    subprocess.run(command, check=True, timeout=240)
    return lambda name: Ended(root, name)


@pytest.mark.parametrize("name", FAILING)
def test_process_that_ends_untold_of_an_error_shows_it_and_ends_with_a_status(
    name: str, ended: Callable[[str], Ended]
) -> None:
    end = ended(name)
    assert end.status == 1
    assert end.stderr.count("torchsaver: a save in the background has failed:") == (2 if name == "fails_twice" else 1)
    assert "No space left on device" in end.stderr
    assert "Traceback" in end.stderr
    assert ("an error of the program's own" in end.stderr) == (name == "fails_and_raises")
    assert not list(end.directory.glob("m*"))


@pytest.mark.parametrize("name", SAVING)
def test_process_that_ends_right_after_save_leaves_the_whole_checkpoint(
    name: str, ended: Callable[[str], Ended]
) -> None:
    end = ended(name)
    assert end.status == (1 if name == "saves_and_raises" else 0)
    assert "torchsaver" not in end.stderr
    assert ts.latest_checkpoint(end.directory) == str(end.directory / "m-1")
    expected = {f"t{n}": torch.arange(n, n + 1_000_000, dtype=torch.float32) for n in range(3)}
    assert differing(stored(str(end.directory / "m-1")), expected) == []
    assert sorted(os.listdir(end.directory)) == ["checkpoint", "m-1.safetensors"]


def test_process_that_was_told_of_an_error_ends_as_it_likes(ended: Callable[[str], Ended]) -> None:
    end = ended("fails_and_is_told")
    assert (end.status, end.stderr) == (0, "")


def test_forked_process_of_multiprocessing_finishes_its_save_or_shows_its_error(ended: Callable[[str], Ended]) -> None:
    good, bad = ended("saves_in_a_forked_child"), ended("fails_in_a_forked_child")
    assert (good.status, good.stdout, good.stderr) == (0, "child 0\n", "")
    assert ts.latest_checkpoint(good.directory) == str(good.directory / "m-1")
    assert len(stored(str(good.directory / "m-1"))) == 3
    assert (bad.status, bad.stdout) == (0, "child 1\n")
    assert "No space left on device" in bad.stderr


def test_process_that_is_interrupted_while_it_waits_at_its_end_ends_at_once_with_a_status(
    ended: Callable[[str], Ended],
) -> None:
    end = ended("is_interrupted_at_the_end")
    assert end.status == 1
    assert "KeyboardInterrupt" in end.stderr


def test_forked_child_neither_waits_nor_writes_nor_is_told_and_saves_on_its_own(ended: Callable[[str], Ended]) -> None:
    end = ended("forks_while_it_saves")
    names = ["checkpoint", "child-2.safetensors", "child-3.safetensors"]
    assert (end.status, end.stderr) == (0, "")
    assert end.stdout == f"child 0\n{names}\n"
    assert [value_of(end.directory / name) for name in ("m-1", "child-2", "child-3")] == [[1] * 3, [2] * 3, [2] * 3]
    end = ended("forks_after_an_error")
    assert (end.status, end.stdout, end.stderr) == (0, "child 0\ntold\n", "")


def test_forked_child_that_ends_leaves_the_locks_with_the_parent(ended: Callable[[str], Ended]) -> None:
    end = ended("forks_while_locks_are_held")
    assert (end.status, end.stdout, end.stderr) == (0, "child 0\n", "")
    assert value_of(end.directory / "m-1") == [1, 1, 1]


def test_data_loader_forks_its_workers_while_a_save_goes_on(ended: Callable[[str], Ended]) -> None:
    end = ended("loads_data_while_it_saves")
    assert (end.status, end.stdout, end.stderr) == (0, f"{json.loads('[[0, 1], [2, 3], [4, 5], [6, 7]]')}\n", "")
    assert value_of(end.directory / "m-1") == [1, 1, 1]


# ---- devices


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("own_stream", [False, True])
def test_values_changed_on_the_device_right_after_save_are_not_what_is_written(
    own_stream: bool, tmp_path: Path, gate: Gate
) -> None:
    model = nn.Sequential(nn.Linear(1000, 1000), nn.BatchNorm1d(1000)).cuda()
    optimizer = torch.optim.Adam(model.parameters(), capturable=True)
    stream = torch.cuda.Stream() if own_stream else torch.cuda.current_stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # a save takes what the current stream has computed
        model(torch.randn(64, 1000, device="cuda")).square().sum().backward()
        optimizer.step()
        saver = ts.Saver({"model": model, "optimizer": optimizer}, background=True)
        expected = {f"model.{key}": tensor.detach().cpu().clone() for key, tensor in model.state_dict().items()}
        saver.save(tmp_path / "m", 1)
        with torch.no_grad():
            for tensor in [*model.parameters(), *(t for s in optimizer.state.values() for t in s.values())]:
                tensor.fill_(-1)
        torch.cuda.synchronize()
        gate.open()
        saver.wait()
    found = stored(str(tmp_path / "m-1"))
    assert differing({key: found[key] for key in expected}, expected) == []
    moments = {key: tensor for key, tensor in found.items() if key.endswith("exp_avg_sq")}
    assert len(moments) == 4
    assert all((tensor >= 0).all() for tensor in moments.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_saves_from_a_device_come_back_by_restore_one_after_the_other(tmp_path: Path) -> None:
    values = {"on the device": torch.zeros(1 << 20, device="cuda"), "here": torch.zeros(1 << 20)}
    saver = ts.Saver(values, background=True)
    for step in range(1, 4):
        for value in values.values():
            value.fill_(step)
        saver.save(tmp_path / "m", step)
        for value in values.values():
            value.fill_(-1)
    for step in range(1, 4):
        saver.restore(tmp_path / f"m-{step}")
        assert [value.unique().tolist() for value in values.values()] == [[step], [step]]

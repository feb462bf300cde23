"""A training run against plain dicts: saves, steps, restarts, crashes and damage in any order, and nothing is lost."""

from __future__ import annotations

import math
import os
import tempfile
from typing import Any
from unittest import mock

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import nn

import torchsaver as ts

KEEP = [ts.Latest(2, alias="last"), ts.Best("loss", 1, alias="best"), ts.EveryNSteps(5)]
NAMES = ("first", "second")


class PowerCut(BaseException):
    """Ends a save where it is, as a kill would."""


class Run:
    """What one process has: modules and optimizer groups in an order of its own, and its own random numbers."""

    def __init__(self, *, is_reversed: bool, background: bool) -> None:
        names = NAMES[::-1] if is_reversed else NAMES
        self.model = nn.ModuleDict({name: nn.Linear(2, 2) for name in names})
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.1)
        self.step = ts.Counter()
        self.generator = torch.Generator()
        self.generator.seed()
        values = {"model": self.model, "optimizer": self.optimizer, "step": self.step}
        values["rng"] = ts.RNGState(generators={"data": self.generator})
        self.saver = ts.Saver(values, keep=KEEP, background=background)

    def train(self) -> None:
        for _, parameter in sorted(self.model.named_parameters()):
            parameter.grad = torch.randn(parameter.shape, generator=self.generator)
        self.optimizer.step()
        self.step.increment()

    def content(self) -> dict[str, Any]:
        """Return everything as plain values."""
        found: dict[str, Any] = {"step": self.step.value, "generator": self.generator.get_state().tolist()}
        for name, parameter in self.model.named_parameters():
            found[name] = parameter.tolist()
            for key, value in self.optimizer.state[parameter].items():
                found[f"{name}.{key}"] = value.tolist()
        return found


def kept(saved: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what KEEP is to keep of `saved`, oldest first, said once more in plain words."""
    measured = [one for one in saved if not math.isnan(one["loss"])]
    best = min(measured, key=lambda one: one["loss"], default=None)
    milestones: dict[int, dict[str, Any]] = {}
    for one in saved:
        if one["step"] >= 5 or one["step"] == 0:
            milestones.setdefault(one["step"] // 5, one)
    wanted = [*saved[-2:], best, *milestones.values()]
    return [one for one in saved if any(one is other for other in wanted)]


class TrainingAgainstDicts(RuleBasedStateMachine):
    """What the saver is to remember, the state file to list, and died saves to have left.

    Attributes:
        saved: {"step", "loss", "content", "is_damaged"} of each that is remembered, oldest first.
        listed: The same of each in the state file: what a resume has skipped stays there until the next save, and counts
            again if a save that died has replaced it.
        ever: All that was ever to be saved in this directory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.saved: list[dict[str, Any]] = []
        self.listed: list[dict[str, Any]] = []
        self.ever: list[dict[str, Any]] = []

    @initialize(is_reversed=st.booleans(), background=st.booleans())
    def begin(self, is_reversed: bool, background: bool) -> None:
        self.run = Run(is_reversed=is_reversed, background=background)

    def teardown(self) -> None:
        if hasattr(self, "run"):
            self.run.saver.close()
        self.directory.cleanup()

    def path(self, step: int) -> str:
        return os.path.join(self.directory.name, f"m-{step}")

    def after_saving(self, loss: float) -> list[dict[str, Any]]:
        step = self.run.step.value
        new = {"step": step, "loss": loss, "content": self.run.content(), "is_damaged": False}
        self.ever.append(new["content"])
        return kept([*(one for one in self.saved if one["step"] != step), new])

    def note(self, saved: list[dict[str, Any]]) -> None:
        """A save has come as far as the state file."""
        self.saved, self.listed = saved, list(saved)

    @rule(count=st.integers(1, 3))
    def train(self, count: int) -> None:
        for _ in range(count):
            self.run.train()

    @rule(loss=st.sampled_from([0.5, 1.0, 2.0, math.nan]))
    def save(self, loss: float) -> None:
        after = self.after_saving(loss)
        self.run.saver.save(os.path.join(self.directory.name, "m"), self.run.step, metrics={"loss": loss})
        self.run.train()  # while it is written, perhaps
        self.note(after)

    @rule(is_reversed=st.booleans(), background=st.booleans())
    def start_again(self, is_reversed: bool, background: bool) -> None:
        self.run.saver.close()
        sound = [number for number, one in enumerate(self.listed) if not one["is_damaged"]]
        self.run = Run(is_reversed=is_reversed, background=background)
        if self.saved and not sound:
            self.find_nothing_or_what_a_save_that_died_has_left()
            return
        report = self.run.saver.resume(self.directory.name)
        assert (report is None) == (not self.saved)
        if report is not None:
            self.saved, skipped = kept(self.listed[: sound[-1] + 1]), self.listed[sound[-1] + 1 :]
            assert report.save_path == self.path(self.saved[-1]["step"])
            assert [skip.save_path for skip in report.skipped] == [self.path(one["step"]) for one in skipped[::-1]]
            assert self.run.content() == self.saved[-1]["content"]
            assert report.metrics.keys() == {"loss"}

    def find_nothing_or_what_a_save_that_died_has_left(self) -> None:
        before = self.run.content()
        try:
            report = self.run.saver.resume(self.directory.name)
        except ts.NoValidCheckpointError as error:
            skipped = error.skipped
            assert self.run.content() == before
        else:
            assert report is not None
            skipped = report.skipped
            assert self.run.content() in self.ever
        assert {skip.save_path for skip in skipped} >= {self.path(one["step"]) for one in self.listed}
        self.directory.cleanup()
        self.directory = tempfile.TemporaryDirectory()
        self.saved, self.listed, self.ever = [], [], []
        self.begin(is_reversed=False, background=False)

    @precondition(lambda self: self.saved)
    @rule(at=st.sampled_from(["named", "listed", "cleared"]), loss=st.sampled_from([0.25, 3.0]))
    def die_while_saving(self, at: str, loss: float) -> None:
        where = {"named": "StagedCheckpoint.publish", "listed": "write_state", "cleared": "remove_unpinned"}[at]
        module = "torchsaver.storage.checkpoint_files" if at == "named" else "torchsaver.rotation"
        after = self.after_saving(loss)
        self.run.saver.close()
        step = self.run.step.value
        replaced = [one for one in self.listed if one["step"] == step]
        with mock.patch(f"{module}.{where}", side_effect=PowerCut):
            try:
                self.run.saver.save(os.path.join(self.directory.name, "m"), step, metrics={"loss": loss})
                self.run.saver.close()
            except PowerCut:
                pass
        if at == "cleared":
            self.note(after)
        elif at == "listed" and replaced:  # it had its name already, and the file is the new one now
            replaced[0].update(loss=loss, content=after[-1]["content"], is_damaged=False)
        self.start_again(is_reversed=False, background=False)

    @precondition(lambda self: self.saved and not self.saved[-1]["is_damaged"])
    @rule(place=st.floats(0, 1, exclude_max=True))
    def damage_the_newest(self, place: float) -> None:
        self.run.saver.close()
        path = f"{self.path(self.saved[-1]['step'])}.safetensors"
        with open(path, "r+b") as file:
            head = 8 + int.from_bytes(file.read(8), "little")
            at = head + int(place * (os.path.getsize(path) - head))
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1]))
        self.saved[-1]["is_damaged"] = True

    @invariant()
    def what_is_kept_is_what_is_listed_and_there(self) -> None:
        if not hasattr(self, "run"):
            return
        steps = [one["step"] for one in self.saved]
        if self.run.saver.last_checkpoints or not steps:
            assert self.run.saver.last_checkpoints == [self.path(step) for step in steps]
        state = ts.get_checkpoint_state(self.directory.name)
        assert (state.all_model_checkpoint_paths if state else []) == [self.path(one["step"]) for one in self.listed]
        assert all(ts.checkpoint_exists(self.path(step)) for step in steps)
        if steps:
            with ts.load_checkpoint(os.path.join(self.directory.name, "last")) as reader:
                assert reader.global_step == self.listed[-1]["step"]


TestTrainingAgainstDicts = TrainingAgainstDicts.TestCase
TestTrainingAgainstDicts.settings = settings(max_examples=150, stateful_step_count=20, deadline=None)

"""Saver against a dict: whatever is saved, swapped, removed and restored, in any order, the values are the dict's."""

import tempfile
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import torchsaver as ts

KEYS = ("a", "b", "c")
KEEP = 3


class SaverAgainstDict(RuleBasedStateMachine):
    """Three values; savers that name them straight and crosswise; checkpoints that come, go and are written over."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.values = {key: torch.zeros(5) for key in KEYS}
        crossed = dict(zip(KEYS, [self.values[key] for key in ("b", "c", "a")], strict=True))
        self.savers = {
            "straight": ts.Saver(self.values, max_to_keep=KEEP),
            "crossed": ts.Saver(crossed, max_to_keep=KEEP, max_shard_bytes=20),
        }
        self.targets = {"straight": self.values, "crossed": crossed}
        self.window: list[str] = []  # prefixes in order of saving
        self.stored: dict[str, dict[str, list[float]]] = {}  # what each checkpoint holds

    def teardown(self) -> None:
        self.directory.cleanup()

    @rule(key=st.sampled_from(KEYS), value=st.floats(width=32, allow_nan=False))
    def change(self, key: str, value: float) -> None:
        self.values[key].fill_(value)

    @rule(how=st.sampled_from(["straight", "crossed"]), step=st.integers(0, 4))
    def save(self, how: str, step: int) -> None:
        saver = self.savers[how]
        saver.set_last_checkpoints_with_time([(prefix, 0.0) for prefix in self.window])
        prefix = saver.save(f"{self.directory.name}/m", step)
        assert prefix is not None
        self.stored[prefix] = {key: value.tolist() for key, value in self.targets[how].items()}
        self.window = [*(kept for kept in self.window if kept != prefix), prefix]
        if len(self.window) > KEEP:
            del self.stored[self.window.pop(0)]

    @precondition(lambda self: self.window)
    @rule(how=st.sampled_from(["straight", "crossed"]), data=st.data())
    def restore(self, how: str, data: Any) -> None:
        prefix = data.draw(st.sampled_from(self.window))
        self.savers[how].restore(prefix)
        assert {key: value.tolist() for key, value in self.targets[how].items()} == self.stored[prefix]

    @precondition(lambda self: self.window)
    @rule()
    def start_again(self) -> None:
        state = ts.get_checkpoint_state(self.directory.name)
        assert state is not None
        assert state.all_model_checkpoint_paths == self.window

    @invariant()
    def what_is_kept_is_what_is_there(self) -> None:
        assert ts.latest_checkpoint(self.directory.name) == (self.window[-1] if self.window else None)
        for prefix in (f"{self.directory.name}/m-{step}" for step in range(5)):
            assert ts.checkpoint_exists(prefix) == (prefix in self.window)
        for prefix in self.window:
            with ts.load_checkpoint(prefix) as reader:
                reader.verify()


TestSaverAgainstDict = SaverAgainstDict.TestCase
TestSaverAgainstDict.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)

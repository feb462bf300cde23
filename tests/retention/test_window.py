"""Retention is TF's algorithm, written down a second time here, and never dooms what has just been saved."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchsaver.formats.manifest import Manifest
from torchsaver.retention.window import (
    SECS_PER_HOUR,
    Record,
    TFRules,
    Window,
    adopt,
    doom_again,
    forget_doomed,
    record_of,
)

NAMES = ["m", "m-1", "m-2", "m-3", "m-4"]
HOURS = st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, math.inf])
# Steps of a quarter of an hour: marks are met exactly, and the clock may go backwards.
STEPS = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(-4, 12)), max_size=30)


class TFSaver:
    """The list and queue of TF's Saver, word for word: a name is its text. (Its mark is never infinite, as ours is
    when the rule is off: there, too, what it was only told of, whose time is infinite, is never deleted.)"""

    def __init__(self, now: float, max_to_keep: int, hours: float, last: list[tuple[str, float]]) -> None:
        self.max_to_keep, self.hours = max_to_keep, hours
        self.next_time = now + hours * 3600
        self.last, self.doomed = list(last), list[tuple[str, float]]()
        self.deleted: list[str] = []
        self.kept: list[str] = []

    def save(self, name: str, now: float) -> None:
        self.last = [entry for entry in self.last if entry[0] != name]
        self.last.append((name, now))
        if len(self.last) > self.max_to_keep:
            self.doomed.append(self.last.pop(0))
        if self.doomed:
            oldest, saved = self.doomed.pop(0)
            if saved > self.next_time or saved == math.inf:
                self.next_time += self.hours * 3600
                self.kept.append(oldest)
            else:
                self.deleted.append(oldest)


def _record(name: str, time: float = 0.0, identity: str | None = None) -> Record:
    return Record(name, time, name if identity is None else identity)


@given(
    steps=STEPS,
    hours=HOURS,
    max_to_keep=st.integers(1, 4),
    recovered=st.lists(
        st.tuples(st.sampled_from(NAMES), st.sampled_from([0.0, 9000.0, math.inf])), unique_by=lambda e: e[0]
    ),
)
def test_retention_of_any_saves_is_what_tf_does(
    steps: list[tuple[str, int]], hours: float, max_to_keep: int, recovered: list[tuple[str, float]]
) -> None:
    now = 1000.0
    tf = TFSaver(now, max_to_keep, hours, recovered)
    rules = TFRules(max_to_keep, hours)
    window = rules.open_window(now)._replace(last=tuple(_record(name, time) for name, time in recovered))
    deleted, kept = [], []
    for name, quarters in steps:
        now += quarters * SECS_PER_HOUR / 4
        tf.save(name, now)
        window, decisions = rules.choose(rules.record_save(window, _record(name, now)))
        deleted += [decision.record.prefix for decision in decisions if not decision.keep]
        kept += [decision.record.prefix for decision in decisions if decision.keep]
        assert [(record.prefix, record.time) for record in window.last] == tf.last
    assert (deleted, kept, window.next_kept_time) == (tf.deleted, tf.kept, tf.next_time)


@given(
    saves=st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from(["", "./", "/abs/"])), max_size=30),
    initial=st.lists(st.sampled_from("abcdefgh"), unique=True),
    max_to_keep=st.integers(1, 4),
    failing=st.sets(st.sampled_from("abcdefgh")),
)
def test_retention_under_any_spelling_keeps_the_window_and_never_dooms_what_is_listed(
    saves: list[tuple[str, str]], initial: list[str], max_to_keep: int, failing: set[str]
) -> None:
    window = Window(last=tuple(_record(name) for name in initial))
    for name, spelling in saves:
        record = _record(spelling + name, identity=name)
        before = window
        window = TFRules(max_to_keep, math.inf).record_save(window, record)
        assert before.doomed == () or {r.identity for r in before.doomed} <= failing
        assert len(window.last) <= max(max_to_keep, len(initial))
        assert window.last[-1] == record
        window, decisions = TFRules(max_to_keep, math.inf).choose(window)
        lost = {decision.record.identity for decision in decisions}
        assert name not in lost
        assert lost.isdisjoint(r.identity for r in window.last)
        assert len({r.identity for r in window.last}) == len(window.last)
        window = doom_again(window, [d.record for d in decisions if d.record.identity in failing])


def test_record_save_of_a_list_with_two_spellings_of_one_checkpoint_does_not_doom_it_while_listed() -> None:
    recovered = Window(last=(_record("m-1"), _record("./m-1", identity="m-1")))  # recover_last_checkpoints keeps both
    window = TFRules(2, math.inf).record_save(recovered, _record("m-2"))
    assert {r.identity for r in window.doomed}.isdisjoint(r.identity for r in window.last)


def test_record_save_and_choose_leave_the_window_they_were_given_as_it_was() -> None:
    window = Window((_record("a"), _record("b")), (_record("c"),), 5.0)
    same = Window((_record("a"), _record("b")), (_record("c"),), 5.0)
    rules = TFRules(1, 1.0)
    rules.record_save(window, _record("d"))
    rules.choose(window)
    rules.plan(window)
    rules.recover(window, [_record("f")])
    doom_again(window, [_record("e")])
    assert window == same


@pytest.mark.parametrize(
    ("times", "kept", "mark"),
    [
        ([100.0], [], 100.0),  # exactly on the mark: strict
        ([100.5], [100.5], 3700.0),
        ([99.0, 101.0, 102.0], [101.0], 3700.0),  # one for each period
        ([9000.0, 9001.0, 9002.0, 9003.0], [9000.0, 9001.0, 9002.0], 10900.0),  # a pause: one for each period missed
        ([4000.0, 3700.0, 3701.0], [4000.0, 3701.0], 7300.0),
        ([math.inf], [math.inf], 3700.0),
        ([], [], 100.0),
    ],
)
def test_choose_keeps_by_the_strict_grid_of_hours(times: list[float], kept: list[float], mark: float) -> None:
    window = Window(doomed=tuple(_record(f"m-{i}", time) for i, time in enumerate(times)), next_kept_time=100.0)
    after, decisions = TFRules(5, 1.0).choose(window)
    assert [decision.record for decision in decisions] == list(window.doomed)
    assert [decision.record.time for decision in decisions if decision.keep] == kept
    assert (after.doomed, after.next_kept_time) == ((), mark)
    assert all(("1 hours" in d.reason) if d.keep else ("max_to_keep" in d.reason) for d in decisions)


def test_doom_again_puts_a_failed_removal_first_and_a_new_save_of_it_takes_it_out() -> None:
    window = doom_again(Window(doomed=(_record("b"),)), [_record("a")])
    assert [r.prefix for r in window.doomed] == ["a", "b"]
    saved = TFRules(5, math.inf).record_save(window, _record("./a", identity="a"))
    assert [r.prefix for r in saved.doomed] == ["b"]


@pytest.mark.parametrize(("hours", "mark"), [(0.0, 50.0), (0.5, 1850.0), (math.inf, math.inf)])
def test_open_window_sets_the_first_mark_the_hours_ahead(hours: float, mark: float) -> None:
    assert TFRules(5, hours).open_window(50.0) == Window(next_kept_time=mark)


@pytest.mark.parametrize(
    ("max_to_keep", "last", "doomed"),
    [(0, "", ""), (1, "c", "ab"), (2, "bc", "a"), (3, "abc", ""), (9, "abc", "")],
)
def test_recover_keeps_the_last_max_to_keep_and_dooms_the_others(max_to_keep: int, last: str, doomed: str) -> None:
    given = Window(next_kept_time=5.0)
    window = TFRules(max_to_keep, 1.0).recover(given, [_record(name) for name in "abc"])
    assert ["".join(r.prefix for r in each) for each in (window.last, window.doomed)] == [last, doomed]
    assert window.next_kept_time == 5.0


def test_plan_says_what_choose_would_do_with_the_doomed_and_that_all_others_stay() -> None:
    window = Window((_record("c"), _record("d")), (_record("a", 99.0), _record("b", 101.0)), next_kept_time=100.0)
    decisions = TFRules(2, 1.0).plan(window)
    assert [(d.save_path, d.keep) for d in decisions] == [("a", False), ("b", True), ("c", True), ("d", True)]
    assert str(decisions[0]) == "a goes: older than the last max_to_keep checkpoints"
    assert str(decisions[3]) == "d stays: one of the last 2"


def test_tf_rules_need_no_records_have_no_aliases_and_remember_nothing_without_a_window() -> None:
    assert not TFRules(5, 1.0).needs_records
    assert TFRules(5, 1.0).aliases(Window((_record("a"),))) == {}
    assert (TFRules(5, 1.0).remembers, TFRules(0, 1.0).remembers) == (True, False)


def test_adopt_puts_older_ones_first_and_none_that_is_known() -> None:
    window = Window((_record("b"),), (_record("c"),))
    adopted = adopt(window, [_record(name) for name in "abc"])
    assert ([r.prefix for r in adopted.last], adopted.doomed) == (["a", "b"], window.doomed)


def test_forget_doomed_drops_that_one_only() -> None:
    window = Window(doomed=(_record("a"), _record("b")))
    assert forget_doomed(window, window.doomed[0]).doomed == window.doomed[1:]


def test_record_of_a_manifest_has_its_time_step_and_metrics_and_without_a_time_is_older_than_all() -> None:
    record = record_of("./run/m-7", "/run/m-7", Manifest(global_step=7, time=5.0, metrics={"loss": 0.5}))
    assert (record.prefix, record.identity, record.name) == ("./run/m-7", "/run/m-7", "m-7")
    assert (record.step, record.time, record.metrics, record.is_resumed) == (7, 5.0, {"loss": 0.5}, False)
    assert record_of("m", "m", Manifest()).time == -math.inf

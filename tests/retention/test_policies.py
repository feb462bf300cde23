"""Each policy alone, what they keep together, and that it does not matter when what they do not keep goes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchsaver.retention.policies import (
    Best,
    EveryNHours,
    EveryNSteps,
    Latest,
    Pinned,
    Policy,
    PolicyRules,
    policy_rules,
)
from torchsaver.retention.window import SECS_PER_HOUR, Record, Window, doom_again

NAN, INF = math.nan, math.inf


def _record(
    number: int, *, step: int | None = None, hour: float = 0.0, resumed: bool = False, **metrics: float
) -> Record:
    name = f"m-{number}"
    return Record(f"run/{name}", hour * SECS_PER_HOUR, f"/run/{name}", step, metrics, resumed)


def _steps(*steps: int | None) -> list[Record]:
    return [_record(number, step=step) for number, step in enumerate(steps)]


def _hours(*hours: float) -> list[Record]:
    return [_record(number, hour=hour) for number, hour in enumerate(hours)]


def _losses(*losses: float | None) -> list[Record]:
    values: list[dict[str, float]] = [{} if loss is None else {"loss": loss} for loss in losses]
    return [_record(number, **value) for number, value in enumerate(values)]


def _kept(policy: Policy, records: Sequence[Record]) -> list[int]:
    """Return the numbers of what a policy keeps, in order of commit."""
    kept = policy.kept(records)
    return [number for number, record in enumerate(records) if record.identity in kept]


def _saved(policies: Sequence[Policy], records: Sequence[Record]) -> Window:
    """Return the window after saves of `records`, each of which lets go at once what is doomed."""
    rules, window = policy_rules(policies), Window()
    for record in records:
        window, _ = rules.choose(rules.record_save(window, record))
    return window


def _names(records: Sequence[Record]) -> list[str]:
    return [record.name for record in records]


# ---- each alone


@pytest.mark.parametrize(("n", "kept"), [(1, [3]), (2, [2, 3]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3])])
def test_latest_keeps_the_last_n_in_order_of_commit_whatever_their_steps_and_times(n: int, kept: list[int]) -> None:
    records = [_record(number, step=-number, hour=-number) for number in range(4)]
    assert _kept(Latest(n), records) == kept


def test_latest_gives_its_alias_to_the_newest() -> None:
    records = _steps(1, 2)
    assert Latest(5, alias="last").aliases(records) == {"last": records[1]}
    assert Latest(5).aliases(records) == Latest(5, alias="last").aliases([]) == {}


@pytest.mark.parametrize(
    ("steps", "kept"),
    [
        ([10, 20, 30], [0, 1, 2]),
        ([8, 13, 19, 21, 29, 45], [1, 3, 5]),
        ([0, 1, 9, 10], [0, 3]),
        ([1, 9], []),  # before the first multiple
        ([None, 10, None, 12], [1]),
        ([10, 25, 12, 20, 30], [0, 1, 4]),  # a run that went back to step 10: one of each period is enough
        ([-20, -10, -1], []),
    ],
)
def test_every_n_steps_keeps_the_first_at_or_after_each_multiple(steps: list[int | None], kept: list[int]) -> None:
    assert _kept(EveryNSteps(10), _steps(*steps)) == kept


def test_every_n_steps_says_which_multiple() -> None:
    assert list(EveryNSteps(10).kept(_steps(23)).values()) == ["the first at or after step 20"]


@pytest.mark.parametrize(
    ("hours", "kept"),
    [
        ([0.0, 1.0, 1.999, 2.0, 3.9, 4.0], [0, 3, 5]),
        ([5.0, 4.0, 6.9, 7.0], [0, 3]),  # the clock went back
        ([-INF, 1.0, 3.0, INF], [1, 2]),  # a third party's, without a time
        ([], []),
    ],
)
def test_every_n_hours_keeps_the_first_and_each_that_is_n_hours_after_the_last_kept(
    hours: list[float], kept: list[int]
) -> None:
    assert _kept(EveryNHours(2), _hours(*hours)) == kept


@pytest.mark.parametrize(
    ("policy", "losses", "kept"),
    [
        (Best("loss"), [3.0, 1.0, 2.0], [1]),
        (Best("loss", 2), [3.0, 1.0, 2.0], [1, 2]),
        (Best("loss", 2, mode="max"), [3.0, 1.0, 2.0], [0, 2]),
        (Best("loss", 9), [3.0, 1.0], [0, 1]),
        (Best("loss"), [NAN, 5.0, NAN], [1]),
        (Best("loss", mode="max"), [NAN, 5.0, NAN], [1]),
        (Best("loss", 3), [NAN, None], []),
        (Best("loss", 2), [None, 5.0, 4.0, None], [1, 2]),
        (Best("loss"), [2.0, 1.0, 1.0, 1.0], [1]),  # the older of equals
        (Best("loss", 2, mode="max"), [1.0, 1.0, 1.0], [0, 1]),
        (Best("loss"), [INF, 1.0, -INF], [2]),
        (Best("loss", mode="max"), [INF, 1.0, -INF], [0]),
        (Best("loss"), [INF, NAN], [0]),
        (Best("loss"), [0.0, -0.0], [0]),
        (Best("other"), [1.0], []),
    ],
)
def test_best_keeps_those_with_the_best_values(policy: Best, losses: list[float | None], kept: list[int]) -> None:
    assert _kept(policy, _losses(*losses)) == kept


def test_best_says_its_place_and_value_and_gives_its_alias_to_the_first() -> None:
    records = _losses(2.0, 0.25, 1.0)
    best = Best("loss", 2, alias="best")
    assert best.kept(records)["/run/m-1"] == "number 1 by min loss, 0.25"
    assert best.kept(records)["/run/m-2"] == "number 2 by min loss, 1"
    assert best.aliases(records) == {"best": records[1]}
    assert best.aliases(_losses(NAN, None)) == {}


def test_pinned_keeps_the_names_literally_and_what_the_run_was_resumed_from() -> None:
    records = [_record(1), _record(2, resumed=True), _record(3), _record(33)]
    assert _kept(Pinned("m-3", "m-*"), records) == [1, 2]
    assert _kept(Pinned(), records) == [1]
    assert Pinned("m-3").kept(records)["/run/m-3"] == "pinned by its name"


# ---- together


def test_rules_keep_what_any_policy_keeps_with_every_reason_and_always_the_newest() -> None:
    rules = policy_rules([EveryNSteps(10), Best("loss")])
    window = Window((_record(1, step=10, loss=1.0), _record(2, step=11), _record(3, step=12)))
    decisions = rules.plan(window)
    assert [(d.keep, d.reason) for d in decisions] == [
        (True, "the first at or after step 10; number 1 by min loss, 1"),
        (False, "not kept by any of EveryNSteps(n=10), Best(metric='loss', n=1, mode='min', alias=None)"),
        (True, "the newest"),
    ]


def test_best_never_displaces_the_newest_and_the_newest_never_the_best() -> None:
    window = _saved([Best("loss")], _losses(1.0, 5.0, 4.0, None))
    assert _names(window.last) == ["m-0", "m-3"]


def test_newest_without_a_metric_is_let_go_when_another_comes() -> None:
    rules = policy_rules([Best("loss")])
    window = rules.record_save(_saved([Best("loss")], _losses(1.0, NAN)), _record(7, loss=2.0))
    assert _names(window.last) == ["m-0", "m-7"]
    assert _names(window.doomed) == ["m-1"]


def test_step_that_goes_back_after_a_resume_counts_by_order_of_commit() -> None:
    window = _saved([Latest(2), EveryNSteps(10)], _steps(10, 20, 12, 13))
    assert _names(window.last) == ["m-0", "m-1", "m-2", "m-3"]
    assert _names(_saved([Latest(1)], _steps(10, 20, 12)).last) == ["m-2"]


def test_save_over_a_checkpoint_makes_it_the_newest_with_its_new_metrics() -> None:
    records = [_record(1, loss=1.0), _record(2, loss=2.0), _record(1, loss=3.0)]
    window = _saved([Best("loss", alias="best"), Latest(2)], records)
    assert _names(window.last) == ["m-2", "m-1"]
    assert policy_rules([Best("loss", alias="best")]).aliases(window)["best"].name == "m-2"


def test_recover_marks_only_the_last_as_resumed_and_dooms_what_is_not_kept() -> None:
    rules = policy_rules([Pinned(), Latest(1)])
    records = [_record(1)._replace(is_resumed=True), _record(2), _record(3)]
    window = rules.recover(Window(doomed=(_record(9),)), records)
    assert (_names(window.last), _names(window.doomed)) == (["m-3"], ["m-1", "m-2"])
    assert window.last[0].is_resumed
    later = rules.record_save(window, _record(4))
    assert _names(later.last) == ["m-3", "m-4"]


def test_plan_has_those_whose_removal_failed_first_and_they_go() -> None:
    rules = policy_rules([Latest(1)])
    window = doom_again(Window((_record(2),)), [_record(1)])
    assert [(d.record.name, d.keep) for d in rules.plan(window)] == [("m-1", False), ("m-2", True)]


def test_rules_of_nothing_saved_plan_nothing_and_have_no_aliases() -> None:
    rules = policy_rules(
        [Latest(1, alias="last"), Best("loss", alias="best"), EveryNHours(1), EveryNSteps(1), Pinned()]
    )
    window = rules.open_window(0.0)
    assert (rules.plan(window), rules.aliases(window)) == ([], {})
    assert rules.recover(window, []) == window


class EvenSteps:
    """A user's own policy: it inherits nothing."""

    def kept(self, records: Sequence[Record]) -> dict[str, str]:
        """Keep even steps."""
        return {r.identity: "an even step" for r in records if r.step is not None and r.step % 2 == 0}

    def aliases(self, records: Sequence[Record]) -> dict[str, Record]:
        """Name the last of them."""
        return {"even": [r for r in records if r.identity in self.kept(records)][-1]}


def test_user_s_own_policy_keeps_and_names_beside_ours() -> None:
    policies: list[Policy] = [EvenSteps(), Latest(1, alias="last")]
    window = _saved(policies, _steps(1, 2, 3, 4, 5))
    assert _names(window.last) == ["m-1", "m-3", "m-4"]
    aliases = policy_rules(policies).aliases(window)
    assert {alias: record.name for alias, record in aliases.items()} == {"even": "m-3", "last": "m-4"}


RECORDS = st.lists(
    st.builds(
        lambda name, step, hour, losses: Record(
            f"run/m-{name}",
            hour * SECS_PER_HOUR,
            f"/run/m-{name}",
            step,
            {key: loss for key, loss in zip(("loss", "acc"), losses, strict=True) if loss is not None},
        ),
        st.integers(0, 30),
        st.none() | st.integers(-1, 40),
        st.sampled_from([-INF, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 3.5, 5.0, 8.0]),
        st.lists(st.none() | st.sampled_from([NAN, INF, -INF, 0.0, 1.0, 2.0, 3.0]), min_size=2, max_size=2),
    ),
    max_size=14,
)
POLICIES = st.lists(
    st.one_of(
        st.builds(Latest, st.integers(1, 3)),
        st.builds(EveryNSteps, st.integers(1, 12)),
        st.builds(EveryNHours, st.sampled_from([0.5, 1.0, 2.0])),
        st.builds(Best, st.sampled_from(["loss", "acc"]), st.integers(1, 3), mode=st.sampled_from(["min", "max"])),
        st.builds(Pinned, st.sampled_from(["m-1", "m-2"])),
    ),
    min_size=1,
    max_size=3,
)


@given(records=RECORDS, policies=POLICIES)
@settings(max_examples=50, deadline=None)
def test_any_saves_never_let_go_what_a_policy_keeps_of_the_list_nor_the_newest(
    records: list[Record], policies: list[Policy]
) -> None:
    rules, window = policy_rules(policies), Window()
    for record in records:
        before = [*(r for r in window.last if r.identity != record.identity), record]
        wanted = {identity for policy in policies for identity in policy.kept(before)} | {record.identity}
        window = rules.record_save(window, record)
        assert {r.identity for r in window.last} == wanted
        assert {r.identity for r in window.doomed} == {r.identity for r in before} - wanted
        assert all(decision.keep for decision in rules.plan(window._replace(doomed=())))  # what is left is all kept
        window, _ = rules.choose(window)
        assert window.last[-1] == record


@given(records=RECORDS, policies=POLICIES)
@settings(max_examples=50, deadline=None)
def test_any_saves_decided_one_by_one_keep_what_deciding_once_over_all_keeps(
    records: list[Record], policies: list[Policy]
) -> None:
    unique = list({record.identity: record for record in records}.values())
    at_once = policy_rules(policies).recover(Window(), unique)
    assert _names(_saved(policies, unique).last) == _names(at_once.last)


@given(records=RECORDS, policies=POLICIES, at=st.integers(0, 14))
@settings(max_examples=50, deadline=None)
def test_restart_between_any_saves_changes_no_decision(records: list[Record], policies: list[Policy], at: int) -> None:
    policies = [policy for policy in policies if not isinstance(policy, Pinned)] or [Latest(2)]
    rules, window = policy_rules(policies), _saved(policies, records[:at])
    again = rules.recover(Window(), window.last)
    for record in records[at:]:
        window, decided = rules.choose(rules.record_save(window, record))
        again, decided_again = rules.choose(rules.record_save(again, record))
        assert [(d.record.name, d.reason) for d in decided] == [(d.record.name, d.reason) for d in decided_again]
        assert [(d.record.name, d.reason) for d in rules.plan(window)] == [
            (d.record.name, d.reason) for d in rules.plan(again)
        ]


@given(records=RECORDS, policies=POLICIES, gone=st.sets(st.integers(0, 30)))
@settings(max_examples=50, deadline=None)
def test_what_a_policy_has_kept_it_keeps_when_any_that_it_has_not_kept_vanish(
    records: list[Record], policies: list[Policy], gone: set[int]
) -> None:
    records = list({record.identity: record for record in records}.values())
    for policy in policies:
        if not isinstance(policy, Latest):  # which then keeps more
            kept = policy.kept(records)
            left = [r for r in records if r.identity in kept or int(r.name[2:]) not in gone]
            assert policy.kept(left) == kept


# ---- what is refused


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Latest(0), ValueError, "n is 1 at least, not 0"),
        (lambda: Latest(-1), ValueError, "not -1"),
        (lambda: Latest(True), TypeError, "not bool"),
        (lambda: Latest(2.0), TypeError, "not float"),  # type: ignore[arg-type]
        (lambda: Latest(1, alias=""), ValueError, "alias ''"),
        (lambda: Latest(1, alias="a/b"), ValueError, "without a directory"),
        (lambda: Latest(1, alias=".."), ValueError, "no name"),
        (lambda: Latest(1, alias="a\0b"), ValueError, "no name"),
        (lambda: Latest(1, alias=3), TypeError, "alias is a str"),  # type: ignore[arg-type]
        (lambda: EveryNSteps(0), ValueError, "1 at least"),
        (lambda: EveryNSteps("5"), TypeError, "not str"),  # type: ignore[arg-type]
        (lambda: EveryNHours(0), ValueError, "above 0"),
        (lambda: EveryNHours(NAN), ValueError, "above 0, not nan"),
        (lambda: EveryNHours(INF), ValueError, "above 0, not inf"),
        (lambda: EveryNHours(False), TypeError, "not bool"),
        (lambda: Best(3), TypeError, "metric is a str"),  # type: ignore[arg-type]
        (lambda: Best("loss", 0), ValueError, "1 at least"),
        (lambda: Best("loss", mode="least"), ValueError, "'min' or 'max', not 'least'"),
        (lambda: Best("loss", alias="/best"), ValueError, "without a directory"),
        (lambda: Pinned(5), TypeError, "not int"),  # type: ignore[arg-type]
        (lambda: Pinned("run/m-5"), ValueError, "without the directory"),
        (lambda: Pinned(""), ValueError, "no name"),
    ],
)
def test_policy_of_a_wrong_value_is_refused_and_says_why(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize(
    ("keep", "error", "words"),
    [
        ([], ValueError, "keep is empty"),
        ((), ValueError, "keep is empty"),
        (Latest(1), TypeError, r"keep=\[Latest\(n=1"),
        ([Latest], TypeError, "wanted"),
        ([3], TypeError, "keep holds 3"),
        ([Latest(1), None], TypeError, "keep holds None"),
        ([Latest(1, alias="x"), Best("loss", alias="x")], ValueError, "the alias 'x'"),
        (3, TypeError, "not 3"),
    ],
)
def test_keep_that_is_no_list_of_policies_is_refused_and_says_why(
    keep: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        policy_rules(keep)


def test_keep_may_come_from_a_generator() -> None:
    assert policy_rules(Latest(n) for n in (1, 2)) == PolicyRules((Latest(1), Latest(2)))


def test_policies_are_values_that_say_what_they_are() -> None:
    assert Latest(2) == Latest(2) != Latest(3)
    assert repr(Pinned("a")) == "Pinned(names=('a',))"
    assert len({Best("loss"), Best("loss"), EveryNHours(1)}) == 2

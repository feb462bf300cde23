"""Policies that go together: a checkpoint stays while any of them keeps it, and the newest always does.

Each decides from the checkpoints' own records alone, in order of commit: never from the names or times of files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import PurePath

from torchsaver.retention.window import SECS_PER_HOUR, Decision, Policy, Record, Rules, Window, with_newest


@dataclass(frozen=True)
class Latest(Policy):
    """Keeps the last `n` checkpoints.

    Args:
        n: How many, 1 at least.
        alias: Another name of the newest: "last" makes `last.safetensors` a hard link to it.
    """

    n: int
    _: KW_ONLY
    alias: str | None = None

    def __post_init__(self) -> None:
        _require_positive(self.n, "n", whole=True)
        _require_alias(self.alias)

    def kept(self, records: Sequence[Record]) -> dict[str, str]:
        """Return the last `n`."""
        reason = "the newest" if self.n == 1 else f"one of the last {self.n}"
        return {record.identity: reason for record in records[-self.n :]}

    def aliases(self, records: Sequence[Record]) -> dict[str, Record]:
        """Return the newest under the alias."""
        return {self.alias: records[-1]} if self.alias and records else {}


@dataclass(frozen=True)
class EveryNSteps(Policy):
    """Keeps the first checkpoint at or after each multiple of `n` steps; one without a step never.

    Args:
        n: Steps, 1 at least.
    """

    n: int

    def __post_init__(self) -> None:
        _require_positive(self.n, "n", whole=True)

    def kept(self, records: Sequence[Record]) -> dict[str, str]:
        """Return the first of each period."""
        found: dict[int, Record] = {}
        for record in records:
            if record.step is not None and (record.step >= self.n or record.step == 0):
                found.setdefault(record.step // self.n, record)
        return {r.identity: f"the first at or after step {number * self.n}" for number, r in found.items()}


@dataclass(frozen=True)
class EveryNHours(Policy):
    """Keeps the first checkpoint, and then the first that was saved `n` hours or more after the last one so kept.

    Args:
        n: Hours, above 0.
    """

    n: float

    def __post_init__(self) -> None:
        _require_positive(self.n, "n", whole=False)

    def kept(self, records: Sequence[Record]) -> dict[str, str]:
        """Return one for each period."""
        found: dict[str, str] = {}
        due = -math.inf
        for record in records:
            if math.isfinite(record.time) and record.time >= due:
                after = f"{self.n:g} hours after the one before" if found else "the first"
                found[record.identity] = f"{after}, for one every {self.n:g} hours"
                due = record.time + self.n * SECS_PER_HOUR
        return found


@dataclass(frozen=True)
class Best(Policy):
    """Keeps the `n` checkpoints that were saved with the best value of a metric: `save(..., metrics={"val_loss": v})`.

    One without the metric, or with a NaN, is never best. Of equal values the older is the better.

    Args:
        metric: Its name.
        n: How many, 1 at least.
        mode: "min" where less is better, "max" where more is.
        alias: Another name of the best: "best" makes `best.safetensors` a hard link to it.
    """

    metric: str
    n: int = 1
    _: KW_ONLY
    mode: str = "min"
    alias: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.metric, str):
            raise TypeError(f"metric is a str, not {type(self.metric).__name__}")
        _require_positive(self.n, "n", whole=True)
        if self.mode not in ("min", "max"):
            raise ValueError(f"mode is 'min' or 'max', not {self.mode!r}")
        _require_alias(self.alias)

    def kept(self, records: Sequence[Record]) -> dict[str, str]:
        """Return the best `n`."""
        order = f"{self.mode} {self.metric}"
        best = self._ranked(records)[: self.n]
        return {
            record.identity: f"number {number} by {order}, {record.metrics[self.metric]:g}"
            for number, record in enumerate(best, start=1)
        }

    def aliases(self, records: Sequence[Record]) -> dict[str, Record]:
        """Return the best under the alias."""
        ranked = self._ranked(records) if self.alias else []
        return {self.alias: ranked[0]} if self.alias and ranked else {}

    def _ranked(self, records: Sequence[Record]) -> list[Record]:
        """Return those that have the metric, the best first."""
        sign = 1 if self.mode == "min" else -1
        measured = [r for r in records if not math.isnan(r.metrics.get(self.metric, math.nan))]
        return sorted(measured, key=lambda record: sign * record.metrics[self.metric])


@dataclass(frozen=True, init=False)
class Pinned(Policy):
    """Keeps the checkpoint this run was resumed from, and those of the names given.

    Args:
        names: Of checkpoints, "model.ckpt-500", without the directory; literal.
    """

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"the name of a checkpoint is a str, not {type(name).__name__}")
            if PurePath(name).name != name or name in ("", ".."):
                raise ValueError(f"{name!r} is no name of a checkpoint; give it without the directory")
        object.__setattr__(self, "names", names)

    def kept(self, records: Sequence[Record]) -> dict[str, str]:
        """Return those that are pinned."""
        resumed = {record.identity: "this run was resumed from it" for record in records if record.is_resumed}
        return resumed | {record.identity: "pinned by its name" for record in records if record.name in self.names}


@dataclass(frozen=True)
class PolicyRules(Rules):
    """The rules of a saver with `keep=`: a checkpoint stays while any policy keeps it, and so does the newest."""

    policies: tuple[Policy, ...]

    def open_window(self, now: float) -> Window:  # noqa: ARG002, TF's rules have a clock
        """Return an empty window."""
        return Window()

    def record_save(self, window: Window, record: Record) -> Window:
        """Return the window after a save: `record` is its newest, and what no policy keeps is doomed."""
        window = with_newest(window, record)
        return self._sorted_out(window, window.last)

    def choose(self, window: Window) -> tuple[Window, list[Decision]]:
        """Return the window with nothing doomed any more, and that all that was goes."""
        return window._replace(doomed=()), [self._goes(record) for record in window.doomed]

    def recover(self, window: Window, records: Iterable[Record]) -> Window:
        """Return the window of a saver that goes on with `records`, oldest first, from the last of them."""
        last = [record._replace(is_resumed=False) for record in records]
        if last:
            last[-1] = last[-1]._replace(is_resumed=True)
        return self._sorted_out(window._replace(doomed=()), last)

    def plan(self, window: Window) -> list[Decision]:
        """Return what stays and goes of all that is remembered, the doomed first, then oldest first."""
        reasons = self._reasons(window.last)
        stays = [
            Decision(r, keep=True, reason=reasons[r.identity]) if r.identity in reasons else self._goes(r)
            for r in window.last
        ]
        return [*(self._goes(record) for record in window.doomed), *stays]

    def aliases(self, window: Window) -> dict[str, Record]:
        """Return what the policies ask for."""
        return {alias: r for policy in self.policies for alias, r in policy.aliases(window.last).items()}

    def _sorted_out(self, window: Window, last: Sequence[Record]) -> Window:
        reasons = self._reasons(last)
        doomed = tuple(record for record in last if record.identity not in reasons)
        kept = tuple(record for record in last if record.identity in reasons)
        return window._replace(last=kept, doomed=(*window.doomed, *doomed))

    def _reasons(self, last: Sequence[Record]) -> dict[str, str]:
        """Return {identity: why it stays}."""
        reasons: dict[str, list[str]] = {}
        for policy in self.policies:
            for identity, reason in policy.kept(last).items():
                reasons.setdefault(identity, []).append(reason)
        if last:
            reasons.setdefault(last[-1].identity, ["the newest"])
        return {identity: "; ".join(several) for identity, several in reasons.items()}

    def _goes(self, record: Record) -> Decision:
        names = ", ".join(map(repr, self.policies))
        return Decision(record, keep=False, reason=f"not kept by any of {names}")


def policy_rules(keep: Iterable[Policy]) -> PolicyRules:
    """Return the rules of `keep=`.

    Raises:
        TypeError: It is no list of policies.
        ValueError: It is empty, or two policies ask for the same alias.
    """
    if isinstance(keep, Policy):
        raise TypeError(f"keep is a list of policies: keep=[{keep!r}]")
    if not isinstance(keep, Iterable):
        raise TypeError(f"keep is a list of policies, [Latest(3), Best('val_loss'), ...], not {keep!r}")
    policies = tuple(keep)
    for policy in policies:
        if isinstance(policy, type) or not isinstance(policy, Policy):
            raise TypeError(f"keep holds {policy!r}; Latest(3), Best('val_loss'), ... were wanted")
    if not policies:
        raise ValueError("keep is empty; Latest(1) keeps the newest only, max_to_keep=None everything")
    aliases = [alias for policy in policies if (alias := getattr(policy, "alias", None)) is not None]
    if doubled := {alias for alias in aliases if aliases.count(alias) > 1}:
        raise ValueError(f"two policies of keep have the alias {min(doubled)!r}; give each its own")
    return PolicyRules(policies)


def _require_positive(value: object, name: str, *, whole: bool) -> None:
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise TypeError(f"{name} is {'an integer' if whole else 'a number'}, not {type(value).__name__}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {'1 at least' if whole else 'above 0'}, not {value}")


def _require_alias(alias: object) -> None:
    if alias is None:
        return
    if not isinstance(alias, str):
        raise TypeError(f"alias is a str, not {type(alias).__name__}")
    if PurePath(alias).name != alias or alias in ("", "..") or "\0" in alias:
        raise ValueError(f"alias {alias!r} is no name of a checkpoint; give it without a directory")

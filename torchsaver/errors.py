"""The errors a caller can act on, one class for each thing there is to do about it.

    TorchSaverError(Exception)
      CheckpointNotFoundError(.., FileNotFoundError, ValueError)   nothing there
      CheckpointKeyError(.., KeyError)                             one key asked for, and missing
      CorruptCheckpointError(.., ValueError)                       damaged or foreign bytes
      NoValidCheckpointError(.., ValueError)                       a directory's checkpoints are all damaged or gone
      UnsupportedCheckpointError(.., NotImplementedError)          readable, but not by us
      MismatchError(.., RuntimeError)                              the checkpoint does not fit the variables
      VarListError(.., ValueError)                                 what was given cannot be saved
        VarListTypeError(.., TypeError)                            ... because something has the wrong type
        ConversionError                                            values that cannot be converted

OSError passes through untouched. Fields are attributes, the message is built from them, and every class pickles.
"""

from __future__ import annotations

import difflib
import inspect
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

_MOST_NAMED = 10  # lines of one kind in a message; the attributes hold them all
_MOST_NEAREST = 10  # keys of one error for which likes are looked for
_MOST_COMPARED = 5000  # keys; comparing takes 40 microseconds each


def nearest_keys(key: str, keys: Iterable[str]) -> tuple[str, ...]:
    """Return up to three of `keys` that look most like `key`, best first."""
    about_as_long = [other for other in keys if abs(len(other) - len(key)) <= max(3, len(key) // 4)]
    return tuple(difflib.get_close_matches(key, about_as_long[:_MOST_COMPARED], n=3, cutoff=0.5))


def nearest_by_label(sought: Mapping[str, str], keys: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return {label: those of `keys` that look most like the name it was sought under}, of the first few labels.

    Finding names that look alike is slow, and nobody reads more.
    """
    names = list(keys)
    return {label: nearest_keys(name, names) for label, name in itertools.islice(sought.items(), _MOST_NEAREST)}


def nearest_text(nearest: Sequence[str]) -> str:
    """Return what a message says of names that look alike, "" where there are none."""
    return f"; nearest: {', '.join(map(repr, nearest))}" if nearest else ""


def _rebuild(cls: type[TorchSaverError], fields: dict[str, Any]) -> TorchSaverError:
    return cls(**fields)


class TorchSaverError(Exception):
    """Base of every error of torchsaver; the attributes are the constructor's arguments."""

    def _message(self) -> str:
        raise NotImplementedError

    def __str__(self) -> str:
        return self._message()

    def __reduce__(self) -> tuple[Any, ...]:
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        return _rebuild, (type(self), {name: getattr(self, name) for name in names})


class CheckpointNotFoundError(TorchSaverError, FileNotFoundError, ValueError):
    """There is no checkpoint under `save_path` (ValueError too, because TF's Saver raises that)."""

    def __init__(self, save_path: str, reason: str = "") -> None:
        super().__init__(save_path)
        self.save_path = save_path
        self.reason = reason

    def _message(self) -> str:
        reason = (
            self.reason or "neither PREFIX.safetensors, PREFIX.safetensors.index.json nor a file of that name is there"
        )
        return f"{self.save_path!r} is not a checkpoint: {reason}; pass what save() or latest_checkpoint() returned"


class CheckpointKeyError(TorchSaverError, KeyError):
    """`key` is not in the checkpoint `save_path`; `nearest` are keys that look like it."""

    def __init__(self, save_path: str, key: str, nearest: Sequence[str] = ()) -> None:
        super().__init__(save_path)
        self.save_path = save_path
        self.key = key
        self.nearest = tuple(nearest)

    def _message(self) -> str:
        return f"{self.key!r} is not in the checkpoint {self.save_path!r}{nearest_text(self.nearest)}"


class CorruptCheckpointError(TorchSaverError, ValueError):
    """The bytes of `path` at `offset` are damaged, cut short, or not of the format; `reason` says how."""

    def __init__(self, path: str, offset: int, reason: str) -> None:
        super().__init__(path)
        self.path = path
        self.offset = offset
        self.reason = reason

    def _message(self) -> str:
        return (
            f"{self.path!r} is damaged at byte {self.offset}: {self.reason}; "
            "use another checkpoint or a fresh copy of this one"
        )


class SkippedCheckpoint(NamedTuple):
    """A checkpoint that was not taken, and why."""

    save_path: str
    reason: str


class NoValidCheckpointError(TorchSaverError, ValueError):
    """`checkpoint_dir` has held checkpoints and none can be restored; `skipped` has (save_path, reason) of each."""

    def __init__(self, checkpoint_dir: str, skipped: Sequence[tuple[str, str]]) -> None:
        super().__init__(checkpoint_dir)
        self.checkpoint_dir = checkpoint_dir
        self.skipped = tuple(SkippedCheckpoint(*skip) for skip in skipped)

    def _message(self) -> str:
        head = f"{self.checkpoint_dir!r} has held checkpoints and none of them can be restored; bring one back, or"
        lines = [f"{save_path}: {reason}" for save_path, reason in self.skipped[:_MOST_NAMED]]
        if len(self.skipped) > _MOST_NAMED:
            lines.append(f"... and {len(self.skipped) - _MOST_NAMED} more")
        return "\n  ".join([f"{head} start from nothing in another directory:", *lines])


class UnsupportedCheckpointError(TorchSaverError, NotImplementedError):
    """`path` is well formed but uses `feature`, which this version cannot read."""

    def __init__(self, path: str, feature: str) -> None:
        super().__init__(path)
        self.path = path
        self.feature = feature

    def _message(self) -> str:
        return f"{self.path!r} cannot be read: {self.feature}"


class MismatchError(TorchSaverError, RuntimeError):
    """The checkpoint does not fit the variables; everything that does not fit is here, and nothing has changed.

    Attributes:
        save_path: The checkpoint, as given to `restore`.
        missing: Keys asked for that the checkpoint does not have.
        shapes: (key, shape stored, shape wanted) for each shape that differs.
        dtypes: (key, dtype stored, dtype wanted) for each dtype that differs, as text.
        targets: (key, reason) for each tensor that cannot be written to.
        nearest: For missing keys, the stored keys that look like them.
        sought: {key: the name it has in the checkpoint}, where an assignment map says so; keys are variables then.
    """

    def __init__(
        self,
        save_path: str,
        *,
        missing: Sequence[str] = (),
        shapes: Sequence[tuple[str, list[int], list[int]]] = (),
        dtypes: Sequence[tuple[str, str, str]] = (),
        targets: Sequence[tuple[str, str]] = (),
        nearest: dict[str, tuple[str, ...]] | None = None,
        sought: dict[str, str] | None = None,
    ) -> None:
        super().__init__(save_path)
        self.save_path = save_path
        self.missing = tuple(missing)
        self.shapes = tuple(shapes)
        self.dtypes = tuple(dtypes)
        self.targets = tuple(targets)
        self.nearest = dict(nearest or {})
        self.sought = dict(sought or {})

    def why(self, key: str) -> str:
        """Return what is wrong with one key, in a line; "" if nothing is."""
        lines = [line for group in self._groups() for line in group if line.startswith(f"{key}: ")]
        return "; ".join(line.removeprefix(f"{key}: ") for line in lines)

    def _groups(self) -> tuple[list[str], ...]:
        where = "the model" if self.sought else "var_list"
        remedy = (
            "say how it is laid out, as by transfer.from_tf"
            if self.sought
            else "pass reshape=True if the layout is right"
        )
        return (
            [f"{key}: not in the checkpoint{self._sought_text(key)}" for key in self.missing],
            [
                f"{key}: shape {stored} in checkpoint, {wanted} in {where}"
                + f"; {remedy}" * (_count(stored) == _count(wanted))
                for key, stored, wanted in self.shapes
            ],
            [
                f"{key}: dtype {stored} in checkpoint, {wanted} in {where}; nothing is ever cast, convert one of them"
                for key, stored, wanted in self.dtypes
            ],
            [f"{key}: {reason}" for key, reason in self.targets],
        )

    def _sought_text(self, key: str) -> str:
        name = self.sought.get(key, key)
        return f" as {name!r}" * (name != key) + nearest_text(self.nearest.get(key, ()))

    def _lines(self) -> list[str]:
        lines = []
        for group in self._groups():
            lines += group[:_MOST_NAMED]
            if len(group) > _MOST_NAMED:
                lines.append(f"... and {len(group) - _MOST_NAMED} more like this")
        return lines

    def _message(self) -> str:
        head = f"{self.save_path!r} does not fit the variables; nothing was restored"
        if self.missing and not self.sought:
            head += " (strict=False skips missing keys)"
        return "\n  ".join([head + ":", *self._lines()])


def _count(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


class VarListError(TorchSaverError, ValueError):
    """`var_list` holds values or keys that cannot be saved; `problems` has a line for each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(*problems)
        self.problems = tuple(problems)

    def _message(self) -> str:
        if len(self.problems) == 1:
            return f"var_list: {self.problems[0]}"
        return "\n  ".join([f"var_list has {len(self.problems)} problems:", *self.problems])


class VarListTypeError(VarListError, TypeError):
    """As VarListError, and at least one of the problems is a value or key of the wrong type."""


class ConversionError(VarListError):
    """Values cannot be converted, or not under these keys; `problems` has a line for each."""

    def _message(self) -> str:
        problems = ";\n  ".join(self.problems)
        return f"nothing was converted, {len(self.problems)} problem{'s' * (len(self.problems) > 1)}:\n  {problems}"

"""What the runner and its worker process tell each other: plain data, sent as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Action = tuple[str, int]  # ("save", step), ("restore", 0), ("remove directory", 0), ("reverse times", 0)
JsonObject = dict[str, Any]


@dataclass(frozen=True)
class Lie:
    """The n-th call of one of these functions of `os` does its work, and then reports an error."""

    functions: list[str]
    n: int
    errno: int


@dataclass(frozen=True)
class WriterOrder:
    """What a writer process is to do.

    Attributes:
        directory: Where.
        actions: What, in order; one that raises is reported, and the next one is done.
        board: File of the Board to report on.
        keep: How many checkpoints are to be kept.
        is_paused: Wait for SIGUSR1 before the first action, so that a tracer can attach.
        umask: Of the process.
        seconds: Begin no action later than this; None: no limit.
        scale: Size of the tensors.
        lie: A call that is to report an error it did not have.
    """

    directory: str
    actions: list[Action]
    board: str
    keep: int
    is_paused: bool = False
    umask: int = 0o022
    seconds: float | None = None
    scale: int = 1
    lie: Lie | None = None

    @classmethod
    def from_json(cls, order: JsonObject) -> WriterOrder:
        """Return the order that `dataclasses.asdict` made `order` of."""
        return cls(**{**order, "lie": Lie(**order["lie"]) if order["lie"] else None})


@dataclass(frozen=True)
class CheckItem:
    """A directory to look at.

    Attributes:
        directory: Where.
        keep: How many checkpoints are to be kept.
        is_deep: Also restore everything that is listed.
        resume_step: Then save this step, restore it, and look for leftovers; 0: do not.
        directories: With `blobs`: what the directory is to hold before; None leaves it as it is.
        blobs: Files whose bytes it is to hold, by path.
    """

    directory: str
    keep: int
    is_deep: bool = True
    resume_step: int = 0
    directories: list[str] | None = None
    blobs: dict[str, str] | None = None


@dataclass(frozen=True)
class Raised:
    """An error: its class, its classes' names, and its message."""

    kind: str
    bases: list[str]
    message: str

    @classmethod
    def of(cls, error: BaseException) -> Raised:
        """Return what there is to say about `error`."""
        return cls(type(error).__name__, [base.__name__ for base in type(error).__mro__], str(error)[:160])

    def __str__(self) -> str:
        return f"{self.kind}: {self.message[:110]}"


@dataclass(frozen=True)
class Finding:
    """What a fresh process finds in a directory.

    Attributes:
        latest: Step that restoring the latest gave; None: no checkpoint, or an error.
        content: The step its tensors are of, or what is wrong with them.
        raised: What restoring the latest raised.
        listing_raised: What asking for the list raised.
        good: Listed steps that restore.
        bad: Listed steps that do not.
        resume: "ok", or what went wrong with the next save.
        leftovers: Files that belong to nothing after the next save.
        memory_mb: Memory that restoring took.
        seconds: Time that restoring took.
        hung_secs: The process was ended after so many seconds.
        died_of: The process died of this signal.
    """

    latest: int | None = None
    content: int | str | None = None
    raised: Raised | None = None
    listing_raised: Raised | None = None
    good: list[int] | None = None
    bad: list[int] = field(default_factory=list)
    resume: str = "ok"
    leftovers: list[str] = field(default_factory=list)
    memory_mb: int = 0
    seconds: float = 0.0
    hung_secs: float | None = None
    died_of: int | None = None

    @classmethod
    def from_json(cls, finding: JsonObject) -> Finding:
        """Return the finding that `dataclasses.asdict` made `finding` of."""
        errors = {key: Raised(**finding[key]) for key in ("raised", "listing_raised") if finding.get(key)}
        return cls(**{**finding, **errors})


@dataclass(frozen=True)
class Failure:
    """An action of a writer that raised, or what a "restore" action gave."""

    action: Action
    raised: Raised | None = None
    latest: int | None = None
    content: int | str | None = None

    @classmethod
    def from_json(cls, report: JsonObject) -> Failure:
        """Return the report that `dataclasses.asdict` made `report` of."""
        kind, step = report["action"]
        raised = Raised(**report["raised"]) if report["raised"] else None
        return cls((kind, step), raised, report["latest"], report["content"])


@dataclass(frozen=True)
class Ending:
    """How a process ended: its exit status, the signal it died of, or after how many seconds it was given up."""

    status: int | None = None
    signal: int | None = None
    hung_secs: float | None = None

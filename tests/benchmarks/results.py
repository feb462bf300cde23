"""What a run comes to, as it is written to JSON. All times are seconds, all sizes bytes."""

from __future__ import annotations

from typing import Literal, TypedDict

Role = Literal["limit", "ours", "peer"]


class Memory(TypedDict):
    """Peak memory of one call above what the process held before it.

    `rss` counts pages of mapped files, `anonymous` does not.
    """

    rss: int
    anonymous: int


class Save(TypedDict):
    """Saves of one row: `durable` is `call` and an fsync of every file and directory it left, unless it does so itself."""

    call: list[float]
    durable: list[float]
    cpu: list[float]
    memory: Memory
    size: int


class Reading(TypedDict):
    """Restores from a file that is not cached at all, or wholly."""

    seconds: list[float]
    cpu: list[float]
    memory: Memory


class Restore(TypedDict):
    """Restores of one row in one of its ways; `is_correct` is None where there is nothing to check."""

    label: str
    is_into_existing: bool
    is_correct: bool | None
    cold: Reading
    warm: Reading


class Row(TypedDict):
    """One peer, or the limit, in one workload."""

    peer: str
    role: Role
    version: str
    save: Save
    restores: list[Restore]


class WorkloadResult(TypedDict):
    """One workload; `skipped` says of each row that is missing why."""

    name: str
    title: str
    tensors: int
    bytes: int
    rows: list[Row]
    skipped: dict[str, str]


class GrowthRow(TypedDict):
    """Durable saves and warm restores of one peer at growing sizes: a list of times for each size."""

    peer: str
    role: Role
    save: list[list[float]]
    restore: list[list[float]]


class GrowthResult(TypedDict):
    """Growth with one quantity: `sizes` in `unit`, "GB" or "tensor"."""

    unit: str
    title: str
    sizes: list[float]
    rows: list[GrowthRow]
    skipped: dict[str, str]


class ToyRow(TypedDict):
    """Two variables in fresh processes: one time of each kind per process, of repeated calls the median in it.

    `torch_import` is a part of `imports`, 0 where a peer does without torch.
    """

    peer: str
    role: Role
    torch_import: list[float]
    imports: list[float]
    first_save: list[float]
    first_restore: list[float]
    repeat_save: list[float]
    repeat_restore: list[float]
    durable_save: list[float]
    memory_save: list[float]
    memory_file: list[float]
    memory_bytes: list[float]
    memory_restore: list[float]


class ToyResult(TypedDict):
    """The toy; `repeats` is the number of repeated calls in each process."""

    repeats: int
    rows: list[ToyRow]
    skipped: dict[str, str]


class ImportResult(TypedDict):
    """Imports in fresh processes, and whole processes: an empty one, and the command line."""

    torch: list[float]
    torchsaver: list[float]
    empty_process: list[float]
    inspect_process: list[float]


class Results(TypedDict):
    """One run."""

    date: str
    mode: str
    repetitions: int
    machine: str
    versions: dict[str, str]
    cold_means: str
    load_before: float
    seconds: float
    workloads: list[WorkloadResult]
    growth: list[GrowthResult]
    toy: ToyResult | None
    imports: ImportResult | None

"""A run as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.comparison import ACTIONS, Action, Timing, best_peer, limit, ratio, timings
from benchmarks.figures import growth, median
from benchmarks.results import GrowthResult, ImportResult, Results, ToyResult, ToyRow, WorkloadResult
from benchmarks.tables import megabytes, milliseconds, number, seconds, spread, table, times


def format_report(results: Results) -> str:
    """Return all tables of a run, the summary first."""
    sections = [_about(results)]
    if results["workloads"]:
        sections.append(_summary(results["workloads"]))
    sections += map(_workload, results["workloads"])
    sections += map(_growth, results["growth"])
    if results["toy"]:
        sections.append(_toy(results["toy"]))
    if results["imports"]:
        sections.append(_imports(results["imports"]))
    return "\n\n".join(sections) + "\n"


def _about(results: Results) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in sorted(results["versions"].items()))
    return (
        f"{results['date']}, mode {results['mode']}, {results['repetitions']} repetitions, {results['seconds']:.0f} s in "
        f"all. {results['machine']}; {versions}. Cold: {results['cold_means']}. "
        f"Load average before: {results['load_before']:.1f}."
    )


def _summary(workloads: Iterable[WorkloadResult]) -> str:
    """Return what torchsaver came to, in one table."""
    lines = []
    for workload in workloads:
        for action, words in ACTIONS.items():
            among = timings(workload, action)
            lines += [
                [workload["name"], words, *_summary_cells(timing, among)] for timing in among if timing.role == "ours"
            ]
    head = ["workload", "what", "row", "median s", "x limit", "x best peer", "best peer", "its median s"]
    return "### Summary\n\n" + table([*head, "x safetensors", "RSS MB", "anonymous MB"], lines)


def _summary_cells(timing: Timing, among: list[Timing]) -> list[str]:
    best = best_peer(among)
    return [
        _name(timing),
        seconds(timing.median),
        times(ratio(timing.median, limit(among))),
        times(ratio(timing.median, best)),
        best.name if best else "-",
        seconds(best.median) if best else "-",
        times(ratio(timing.median, best_peer(among, "safetensors"))),
        megabytes(timing.memory["rss"]),
        megabytes(timing.memory["anonymous"]),
    ]


def _workload(workload: WorkloadResult) -> str:
    size = f"{workload['tensors']:,} tensors, {workload['bytes'] / 1e6:,.1f} MB."
    head = f"### {workload['name']}: {workload['title']}\n\n{size}{_skipped(workload['skipped'])}"
    return "\n\n".join([head, *(_action(workload, action) for action in ACTIONS), _calls(workload)])


def _action(workload: WorkloadResult, action: Action) -> str:
    among = timings(workload, action)
    references = (limit(among), best_peer(among), best_peer(among, "safetensors"))
    lines = [
        [
            _name(timing),
            seconds(timing.median),
            spread(timing.seconds),
            *(times(ratio(timing.median, reference)) for reference in references),
            seconds(median(timing.cpu)),
            megabytes(timing.memory["rss"]),
            megabytes(timing.memory["anonymous"]),
        ]
        for timing in among
    ]
    head = [ACTIONS[action], "s", "min-max", "x limit", "x best peer", "x safetensors", "CPU s", "RSS MB"]
    return table([*head, "anonymous MB"], lines)


def _calls(workload: WorkloadResult) -> str:
    """Return what saves take before they are made durable, and how large the files are."""
    lines = [
        [row["peer"], seconds(median(row["save"]["call"])), f"{row['save']['size'] / workload['bytes']:.4f}"]
        for row in sorted(workload["rows"], key=lambda row: median(row["save"]["call"]))
    ]
    return table(["save, the call alone", "s", "file bytes / tensor bytes"], lines)


def _growth(result: GrowthResult) -> str:
    is_bytes = result["unit"] == "GB"
    per_unit, scale = ("s per GB", 1.0) if is_bytes else ("us per tensor", 1e6)
    lines = []
    for row in result["rows"]:
        cells = [row["peer"]]
        for samples in (row["save"], row["restore"]):
            line = growth(result["sizes"], samples)
            medians = ", ".join(seconds(median(taken)) for taken in samples)
            cells += [number(line.slope * scale), milliseconds(line.at_zero), medians]
        lines.append(cells)
    sizes = ", ".join(f"{size:,.3g}" if is_bytes else f"{size:,.0f}" for size in result["sizes"])
    note = f"Durable saves and warm restores of {sizes} {'GB' if is_bytes else 'tensors'}."
    head = [
        f"{what}{part}" for what in ("save", "restore") for part in (f": {per_unit}", ": ms at none", ": medians, s")
    ]
    return f"### {result['title']}\n\n{note}{_skipped(result['skipped'])}\n\n" + table(["peer", *head], lines)


def _toy(result: ToyResult) -> str:
    rows = sorted(result["rows"], key=lambda row: median(_whole(row)))
    lines = [[row["peer"], *(milliseconds(median(samples)) for samples in _toy_columns(row).values())] for row in rows]
    processes = len(rows[0]["imports"]) if rows else 0
    note = f"Milliseconds, medians of {processes} fresh processes with {result['repeats']} repeated calls of each kind."
    head = ["peer", *(_toy_columns(rows[0]) if rows else [])]
    return f"### toy: two variables\n\n{note}{_skipped(result['skipped'])}\n\n" + table(head, lines)


def _toy_columns(row: ToyRow) -> dict[str, list[float]]:
    return {
        "import": row["imports"],
        "first save": row["first_save"],
        "first restore": row["first_restore"],
        "import + save + restore": _whole(row),
        "of it without `import torch`": [
            whole - torch_import for whole, torch_import in zip(_whole(row), row["torch_import"], strict=True)
        ],
        "repeat save": row["repeat_save"],
        "repeat restore": row["repeat_restore"],
        "repeat durable save": row["durable_save"],
        "repeat save in memory": row["memory_save"],
        "the same, write_state=False": row["memory_file"],
        "the file's bytes alone": row["memory_bytes"],
        "repeat restore from memory": row["memory_restore"],
    }


def _whole(row: ToyRow) -> list[float]:
    """Return what each process took from its start to its first restore."""
    return [sum(parts) for parts in zip(row["imports"], row["first_save"], row["first_restore"], strict=True)]


def _imports(result: ImportResult) -> str:
    kinds = {
        "`import torch`": result["torch"],
        "`import torchsaver` after it": result["torchsaver"],
        "a process that does nothing": result["empty_process"],
        "`python -m torchsaver inspect FILE`, the process": result["inspect_process"],
    }
    lines = [[words, milliseconds(median(taken)), spread(taken, 1e3)] for words, taken in kinds.items()]
    return "### imports: fresh processes\n\n" + table(["what", "ms", "min-max"], lines)


def _name(timing: Timing) -> str:
    name = f"**{timing.name}**" if timing.role == "ours" else timing.name
    return f"{name} WRONG VALUES" if timing.is_wrong else name


def _skipped(skipped: dict[str, str]) -> str:
    return "".join(f" {peer} was left out: {reason.rstrip('.')}." for peer, reason in skipped.items())

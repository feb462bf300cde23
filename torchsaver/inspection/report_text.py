"""Reports as text: the lines and the JSON that `torchsaver verify` and `torchsaver ls` print.

The names in the JSON stay as they are; new ones may be added.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from torchsaver.inspection.reports import CheckpointStatus, Damage, DirectoryReport, Listed, Verdict, VerifyReport
from torchsaver.inspection.terminal_text import bytes_text, table_lines, time_text, visible

_MOST_NAMED = 3
_WORDS: dict[Verdict, str] = {
    "valid": "valid",
    "headers_ok": "header ok",
    "no_checksums": "no checksums",
    "incomplete": "incomplete",
    "damaged": "DAMAGED",
    "gone": "GONE",
    "unsupported": "unsupported",
    "unreadable": "unreadable",
}
_LISTED: dict[Listed, str] = {"newest": "newest", "yes": "yes", "no": "-"}


def verify_lines(reports: Sequence[VerifyReport], damage: Sequence[Damage], secs: float) -> Iterator[str]:
    """Yield a line for each checkpoint and below it one for each damage, the state file's damage, and the summary."""
    for report in reports:
        yield _checkpoint_line(report)
        yield from (f"  {_damage_text(one)}" for one in report.damage)
    yield from map(_damage_text, damage)
    yield _summary(reports, damage, secs) if reports else "no checkpoints"


def conversion_lines(conversion: dict[str, Any], *, is_dry_run: bool, secs: float) -> Iterator[str]:
    """Yield what a conversion has done, or would do: a line for each tensor, what was left out, and a sum."""
    header = ("from", "shape", "dtype", "layout", "to", "shape")
    rows = [
        (
            visible(row["from"]),
            str(row["from_shape"]),
            row["dtype"],
            row["transform"] or "",
            visible(row["key"]) if row["key"] != row["from"] else "the same",
            str(row["shape"]) if row["shape"] != row["from_shape"] else "",
        )
        for row in conversion["tensors"]
    ]
    if is_dry_run:
        yield from table_lines([header, *rows], [False] * len(header))
        for row in conversion["tensors"]:
            yield from (f"{visible(alias)} is another name of {visible(row['key'])}" for alias in row["aliases"])
    by_reason: dict[str, list[str]] = {}
    for key, reason in conversion["left_out"].items():
        by_reason.setdefault(reason, []).append(key)
    for reason, keys in by_reason.items():
        some = keys if is_dry_run else keys[:_MOST_NAMED]
        rest = f", ... {len(keys)} in all" if len(some) < len(keys) else ""
        yield f"left out, {reason}: {', '.join(map(visible, some))}{rest}"
    what = f"{_count(len(rows), 'tensor')}, {bytes_text(conversion['total_bytes'])}"
    place = f"{visible(conversion['destination'])} ({conversion['format']})"
    yield f"{what} would go to {place}; nothing was written" if is_dry_run else f"{what} to {place} in {secs:.2f} s"


def prune_lines(rows: Sequence[dict[str, Any]], *, is_dry_run: bool) -> Iterator[str]:
    """Yield a line for each checkpoint, why it stays or goes, and the sum of what is freed."""
    yield from (
        f"{visible(row['save_path'])} {'stays' if row['keep'] else 'goes'}: {visible(row['reason'])}" for row in rows
    )
    gone = [row["freed_bytes"] for row in rows if not row["keep"]]
    what = f"{len(gone)} of {_count(len(rows), 'checkpoint')}, {sum(gone):,} bytes"
    yield f"{what} would go; nothing was removed" if is_dry_run else f"{what} removed"


def ls_lines(report: DirectoryReport) -> Iterator[str]:
    """Yield the table of a directory's checkpoints, reasons where there is no verdict, and the state file's damage."""
    if report.checkpoints:
        header = ("name", "step", "saved", "bytes", "valid", "listed")
        rows = [_row(status) for status in report.checkpoints]
        yield from table_lines([header, *rows], [False, True, False, True, False, False])
    else:
        yield f"{visible(report.checkpoint_dir)}: no checkpoints"
    for status in report.checkpoints:
        if status.report.problem:
            yield f"{visible(status.name)}: {visible(status.report.problem)}"
    yield from map(_damage_text, report.damage)
    if any(status.report.verdict == "damaged" for status in report.checkpoints):
        yield "`torchsaver verify` says what is damaged"


def checkpoints_json(statuses: Sequence[CheckpointStatus]) -> list[dict[str, Any]]:
    """Return the JSON of a directory's checkpoints."""
    return [checkpoint_json(status.report, status.listed) for status in statuses]


def checkpoint_json(report: VerifyReport, listed: Listed | None) -> dict[str, Any]:
    """Return a checkpoint's JSON; `listed` is null for one that was not looked for in a state file."""
    return {
        "name": os.path.basename(report.save_path),
        "save_path": report.save_path,
        "listed": listed,
        "verdict": report.verdict,
        "global_step": report.global_step,
        "time": report.time,
        "sequence": report.sequence,
        "alias_of": report.alias_of,
        "files": list(report.files),
        "file_bytes": report.file_bytes,
        "tensors": report.tensors,
        "checked_tensors": report.checked_tensors,
        "checked_bytes": report.checked_bytes,
        "problem": report.problem or None,
        "damage": damage_json(report.damage),
    }


def damage_json(damage: Sequence[Damage]) -> list[dict[str, Any]]:
    """Return the JSON of damage."""
    return [one._asdict() for one in damage]


def _checkpoint_line(report: VerifyReport) -> str:
    facts = [_WORDS[report.verdict]]
    if report.verdict == "no_checksums":
        facts.append("structure checked only")
    if report.verdict == "no_checksums" and report.checked_tensors:  # shards of ours under a third party's index
        facts[-1] = f"structure and the values of {report.checked_tensors} checked"
    if report.problem:
        facts.append(visible(report.problem))
    if report.verdict != "gone":
        facts.append(f"{_count(report.tensors, 'tensor')}, {report.file_bytes:,} bytes")
    return f"{visible(report.save_path)}: {', '.join(facts)}"


def _damage_text(damage: Damage) -> str:
    tensor = "" if damage.tensor is None else f"{visible(damage.tensor)} "
    place = "" if damage.offset is None else f"{tensor}at byte {damage.offset}: "
    return f"{visible(damage.file)}: {place}{visible(damage.reason)}"


def _summary(reports: Sequence[VerifyReport], damage: Sequence[Damage], secs: float) -> str:
    counts = Counter(_WORDS[report.verdict] for report in reports)
    verdicts = ", ".join(f"{counts[word]} {word}" for word in _WORDS.values() if counts[word])
    parts = [f"{_count(len(reports), 'checkpoint')}: {verdicts}"]
    if damage:
        parts.append("state file DAMAGED")
    tensors, nbytes = sum(report.checked_tensors for report in reports), sum(report.checked_bytes for report in reports)
    speed = f" in {secs:.2f} s, {bytes_text(nbytes / secs)}/s" if nbytes and secs > 0 else ""
    parts.append(f"{_count(tensors, 'tensor')}, {nbytes:,} bytes compared{speed}")
    return "; ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _row(status: CheckpointStatus) -> tuple[str, ...]:
    report = status.report
    return (
        visible(status.name),
        "-" if report.global_step is None else str(report.global_step),
        "-" if report.time is None else time_text(report.time),
        f"{report.file_bytes:,}",
        "yes" if report.verdict == "valid" else _WORDS[report.verdict],
        f"is {visible(report.alias_of)}" if report.alias_of and status.listed == "no" else _LISTED[status.listed],
    )

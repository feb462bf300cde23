"""The command line: arguments in, text out; what it shows comes from inspection/.

It starts without torch, which takes seconds to import.

Exit codes: 0 fine, 1 damage, or failed, with one line on stderr, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from torchsaver.errors import TorchSaverError
from torchsaver.inspection import report_text
from torchsaver.inspection.description import CheckpointDescription, describe_checkpoint
from torchsaver.inspection.directory import verify_directory
from torchsaver.inspection.progress import ProgressBar
from torchsaver.inspection.terminal_text import json_text, table_lines, time_text, visible
from torchsaver.inspection.verification import verify_checkpoint
from torchsaver.open_checkpoint import OpenCheckpoint, open_checkpoint
from torchsaver.version import __version__


class Answer(NamedTuple):
    """What a command has come to: its exit code, known before its text is printed, because the reader may go away."""

    code: int
    lines: Iterable[str]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `argv` is without the program's name, sys.argv by default."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a key may hold what the terminal's encoding does not
    arguments = _parser().parse_args(argv)
    answer = Answer(0, ())
    try:
        answer = arguments.run(arguments)
        for line in answer.lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has gone (| head): nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (TorchSaverError, OSError) as error:
        print(f"torchsaver: {visible(' '.join(str(error).split()))}", file=sys.stderr)
        return 1
    return answer.code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="torchsaver", description="Look into checkpoints, convert and prune them.")
    parser.add_argument("--version", action="version", version=f"torchsaver {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    inspect = commands.add_parser(
        "inspect", help="list key, dtype, shape, bytes, step and metadata, without the values"
    )
    inspect.add_argument("path", metavar="PATH", help="a prefix, TensorFlow's too, one of its files, or a directory")
    inspect.add_argument("--key", help="show this key only")
    inspect.add_argument("--values", action="store_true", help="read and print the values too")
    inspect.set_defaults(run=_inspect)
    verify = commands.add_parser("verify", help="read everything, compare the checksums and report all damage")
    verify.add_argument("path", metavar="DIR_OR_PREFIX", help="every checkpoint of a directory, or one prefix or file")
    verify.set_defaults(run=_verify)
    ls = commands.add_parser("ls", help="list a directory's checkpoints, oldest first, and whether they hold")
    ls.add_argument("path", metavar="DIR", help="the directory")
    ls.add_argument("--headers", action="store_true", help="read the headers only")
    ls.set_defaults(run=_ls)
    convert = commands.add_parser("convert", help="write a checkpoint in another format, or under other keys")
    convert.add_argument(
        "source", metavar="SRC", help="a prefix, file or directory: TensorFlow's, safetensors, .pt or .bin"
    )
    convert.add_argument("destination", metavar="DST", help="the prefix to write")
    convert.add_argument("--to", choices=("safetensors", "tf"), help="the format to write, safetensors by default")
    convert.add_argument("--map", metavar="RULES.toml", help="how keys are renamed and values laid out")
    convert.add_argument("--max-shard-bytes", metavar="N", type=_positive, help="write files of at most so many bytes")
    convert.add_argument("--dry-run", action="store_true", help="check everything and show the plan; write nothing")
    convert.add_argument("--force", action="store_true", help="replace a checkpoint of that name")
    convert.set_defaults(run=_convert, usage_error=convert.error)
    prune = commands.add_parser("prune", help="remove the checkpoints of a directory that no policy keeps")
    prune.add_argument("path", metavar="DIR", help="the directory")
    prune.add_argument("--latest", metavar="N", type=_positive, help="keep the last N")
    best = 'keep the N best, 1 by default, by a metric; "max": more is better'
    prune.add_argument("--best", metavar="METRIC[:N[:max]]", type=_best, action="append", default=[], help=best)
    prune.add_argument("--every-steps", metavar="N", type=_positive, help="keep one for each N steps")
    prune.add_argument("--every-hours", metavar="H", type=_above_zero, help="keep one for each H hours")
    prune.add_argument("--pin", metavar="NAME", action="append", default=[], help="keep the checkpoint of this name")
    prune.add_argument("--dry-run", action="store_true", help="show what would go; remove nothing")
    prune.set_defaults(run=_prune, usage_error=prune.error)
    for command in (verify, ls, prune):
        command.add_argument(
            "--latest-filename", metavar="NAME", help='the state file\'s name, "checkpoint" by default'
        )
    for command in (inspect, verify, ls, convert, prune):
        command.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def _above_zero(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def _best(text: str) -> tuple[str, int, str]:
    """Return what METRIC[:N[:max]] says; the metric itself may hold a colon, "train:loss"."""
    metric, mode = text, "min"
    for ending in ("min", "max"):
        if text.endswith(f":{ending}"):
            metric, mode = text.removesuffix(f":{ending}"), ending
    head, _, number = metric.rpartition(":")
    metric, count = (head, _positive(number)) if head and number.isdecimal() else (metric, 1)
    return metric, count, mode


def _verify(arguments: argparse.Namespace) -> Answer:
    start = time.perf_counter()
    with ProgressBar(sys.stderr) as bar:
        if os.path.isdir(arguments.path):
            found = verify_directory(arguments.path, latest_filename=arguments.latest_filename, progress=bar)
            damage, is_sound = found.damage, found.is_sound
            reports = [status.report for status in found.checkpoints]
            rows = report_text.checkpoints_json(found.checkpoints)
        else:
            report = verify_checkpoint(arguments.path, progress=bar)
            damage, is_sound = (), report.is_sound
            reports, rows = [report], [report_text.checkpoint_json(report, None)]
    secs = time.perf_counter() - start
    if not arguments.json:
        return Answer(int(not is_sound), report_text.verify_lines(reports, damage, secs))
    facts = {"path": arguments.path, "ok": is_sound, "state_file_damage": report_text.damage_json(damage)}
    nbytes = sum(report.checked_bytes for report in reports)
    return Answer(int(not is_sound), [json_text({**facts, "checkpoints": rows, "checked_bytes": nbytes, "secs": secs})])


def _convert(arguments: argparse.Namespace) -> Answer:
    # Here and not above: it needs torch, and no other command is to wait for that.
    from torchsaver.conversion.convert import convert_checkpoint, destination_prefix, read_rules_file  # noqa: PLC0415

    start = time.perf_counter()
    to: Any = arguments.to or ("tf" if arguments.destination.endswith(".index") else "safetensors")
    try:  # only what is wrong usage: any other ValueError is a bug, and is to be seen as one
        destination_prefix(arguments.destination, to)
        rules = None if arguments.map is None else read_rules_file(arguments.map)
    except ValueError as error:
        arguments.usage_error(visible(str(error)))
    with ProgressBar(sys.stderr) as bar:
        conversion = convert_checkpoint(
            arguments.source,
            arguments.destination,
            to=to,
            rules=rules,
            max_shard_bytes=arguments.max_shard_bytes,
            overwrite=arguments.force,
            dry_run=arguments.dry_run,
            progress=bar,
        )
    secs = time.perf_counter() - start
    if arguments.json:
        return Answer(0, [json_text({**conversion.as_json(), "dry_run": arguments.dry_run, "secs": secs})])
    return Answer(0, report_text.conversion_lines(conversion.as_json(), is_dry_run=arguments.dry_run, secs=secs))


def _prune(arguments: argparse.Namespace) -> Answer:
    # Here and not above: it needs torch, to verify the newest checkpoint, and no other command is to wait for that.
    from torchsaver import pruning  # noqa: PLC0415
    from torchsaver.retention.policies import Best, EveryNHours, EveryNSteps, Latest, Pinned  # noqa: PLC0415
    from torchsaver.retention.window import Policy  # noqa: PLC0415

    one: list[tuple[Any, Callable[[Any], Policy]]] = [
        (arguments.latest, Latest),
        (arguments.every_steps, EveryNSteps),
        (arguments.every_hours, EveryNHours),
    ]
    try:  # only what is wrong usage
        policies: list[Policy] = [policy(number) for number, policy in one if number is not None]
        policies += [Best(metric, n, mode=mode) for metric, n, mode in arguments.best]
        policies += [Pinned(*arguments.pin)] if arguments.pin else []
    except ValueError as error:
        arguments.usage_error(visible(str(error)))
    if not policies:
        arguments.usage_error("say what to keep: --latest, --best, --every-steps, --every-hours or --pin")
    try:
        found = pruning.prune(
            arguments.path,
            policies,
            latest_filename=arguments.latest_filename,
            dry_run=arguments.dry_run,
            names_must_be_known=True,
        )
    except pruning.UnknownNameError as error:
        arguments.usage_error(visible(str(error)))
    rows = [
        {"save_path": decision.save_path, "keep": decision.keep, "reason": decision.reason, "freed_bytes": freed_bytes}
        for decision, freed_bytes in found
    ]
    if arguments.json:
        return Answer(0, [json_text({"path": arguments.path, "dry_run": arguments.dry_run, "checkpoints": rows})])
    return Answer(0, report_text.prune_lines(rows, is_dry_run=arguments.dry_run))


def _ls(arguments: argparse.Namespace) -> Answer:
    with ProgressBar(sys.stderr) as bar:
        found = verify_directory(
            arguments.path,
            latest_filename=arguments.latest_filename,
            headers_only=arguments.headers,
            progress=bar,
        )
    if not arguments.json:
        return Answer(int(not found.is_sound), report_text.ls_lines(found))
    facts = {"path": arguments.path, "ok": found.is_sound}
    damage, rows = report_text.damage_json(found.damage), report_text.checkpoints_json(found.checkpoints)
    return Answer(int(not found.is_sound), [json_text({**facts, "state_file_damage": damage, "checkpoints": rows})])


def _inspect(arguments: argparse.Namespace) -> Answer:
    return Answer(0, _inspect_lines(arguments))


def _inspect_lines(arguments: argparse.Namespace) -> Iterator[str]:
    with _opened(arguments) as (checkpoint, value_of):
        description = describe_checkpoint(checkpoint, arguments.key)
        if arguments.json:
            yield json_text(_as_json(description, value_of))
            return
        yield from _fact_lines(description)
        yield from _tensor_lines(description, value_of)
        if arguments.key is None:
            count, elements = len(description.tensors), description.elements
            yield f"{count} tensors, {elements:,} elements, {description.nbytes:,} bytes"


@contextlib.contextmanager
def _opened(arguments: argparse.Namespace) -> Iterator[tuple[OpenCheckpoint, Callable[[str], Any] | None]]:
    """Yield the checkpoint, and what gives a key's value as it is to be shown; None where no values are."""
    if not arguments.values:
        with open_checkpoint(arguments.path) as checkpoint:
            yield checkpoint, None
        return
    # Here and not above: values are tensors, and no other command is to wait for torch.
    from torchsaver.inspection.listing import format_value, json_value  # noqa: PLC0415
    from torchsaver.reader import load_checkpoint  # noqa: PLC0415

    shown = json_value if arguments.json else format_value
    with load_checkpoint(arguments.path) as reader:
        yield reader, lambda key: shown(reader.get_tensor(key))


def _as_json(description: CheckpointDescription, value_of: Callable[[str], Any] | None) -> dict[str, Any]:
    tensors = []
    for tensor in description.tensors:
        row = {"key": tensor.key, "dtype": tensor.dtype, "shape": tensor.shape, "bytes": tensor.nbytes}
        tensors.append(row if value_of is None else {**row, "value": value_of(tensor.key)})
    return {
        "save_path": description.save_path,
        "files": description.files,
        "global_step": description.global_step,
        "time": description.time,
        "metadata": description.metadata,
        "metrics": dict(description.metrics),
        "tensors": tensors,
        "aliases": description.aliases,
        "objects": description.objects,
        "total_bytes": description.nbytes,
        "total_elements": description.elements,
    }


def _fact_lines(description: CheckpointDescription) -> Iterator[str]:
    yield visible(description.save_path)
    if description.global_step is not None:
        yield f"  step: {description.global_step}"
    if description.time is not None:
        yield f"  saved: {time_text(description.time)}"
    if description.metadata is not None:
        yield f"  metadata: {visible(json.dumps(description.metadata, ensure_ascii=False))}"
    if description.metrics:
        yield f"  metrics: {visible(', '.join(f'{name} {value:g}' for name, value in description.metrics.items()))}"
    if description.objects:
        yield f"  objects: {visible(', '.join(description.objects))}"
    if len(description.files) > 1:
        yield f"  files: {len(description.files)}"


def _tensor_lines(description: CheckpointDescription, value_of: Callable[[str], Any] | None) -> Iterator[str]:
    rows = [(visible(t.key), t.dtype, str(list(t.shape)), f"{t.nbytes:,}") for t in description.tensors]
    table = table_lines([("key", "dtype", "shape", "bytes"), *rows], [False, False, False, True])
    for number, line in enumerate(table):
        yield line
        if value_of is not None and number:
            yield value_of(description.tensors[number - 1].key)
    for alias, kept in sorted(description.aliases.items()):
        yield f"{visible(alias)} is another name of {visible(kept)}"

"""The command line: arguments in, text out; what it shows comes from inspection.py.

Exit codes: 0 fine, 1 failed, with one line on stderr, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from torchsaver.errors import TorchSaverError
from torchsaver.inspection import CheckpointDescription, describe_checkpoint, format_value, json_value
from torchsaver.reader import CheckpointReader, load_checkpoint
from torchsaver.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `argv` is without the program's name, sys.argv by default."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a key may hold what the terminal's encoding does not
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has gone (| head): nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (TorchSaverError, OSError) as error:
        print(f"torchsaver: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="torchsaver", description="Look into checkpoints.")
    parser.add_argument("--version", action="version", version=f"torchsaver {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    inspect = commands.add_parser(
        "inspect", help="list key, dtype, shape, bytes, step and metadata, without the values"
    )
    inspect.add_argument("path", metavar="PATH", help="a prefix, a .safetensors or .index.json file, or a directory")
    inspect.add_argument("--key", help="show this key only")
    inspect.add_argument("--values", action="store_true", help="read and print the values too")
    inspect.add_argument("--json", action="store_true", help="print one JSON object")
    inspect.set_defaults(run=_inspect)
    return parser


def _inspect(arguments: argparse.Namespace) -> None:
    with load_checkpoint(arguments.path) as reader:
        description = describe_checkpoint(reader, arguments.key)
        if arguments.json:
            print(json.dumps(_as_json(description, reader, arguments.values), indent=2, ensure_ascii=False))
        else:
            _print_facts(description)
            _print_tensors(description, reader, arguments.values)
            if arguments.key is None:
                count, elements = len(description.tensors), description.elements
                print(f"{count} tensors, {elements:,} elements, {description.nbytes:,} bytes")


def _as_json(description: CheckpointDescription, reader: CheckpointReader, values: bool) -> dict[str, Any]:
    tensors = []
    for tensor in description.tensors:
        row = {"key": tensor.key, "dtype": tensor.dtype, "shape": tensor.shape, "bytes": tensor.nbytes}
        tensors.append({**row, "value": json_value(reader.get_tensor(tensor.key))} if values else row)
    return {
        "save_path": description.save_path,
        "files": description.files,
        "global_step": description.global_step,
        "time": description.time,
        "metadata": description.metadata,
        "tensors": tensors,
        "aliases": description.aliases,
        "objects": description.objects,
        "total_bytes": description.nbytes,
        "total_elements": description.elements,
    }


def _print_facts(description: CheckpointDescription) -> None:
    print(_visible(description.save_path))
    if description.global_step is not None:
        print(f"  step: {description.global_step}")
    if description.time is not None:
        print(f"  saved: {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(description.time))}")
    if description.metadata is not None:
        print(f"  metadata: {_visible(json.dumps(description.metadata, ensure_ascii=False))}")
    if description.objects:
        print(f"  objects: {_visible(', '.join(description.objects))}")
    if len(description.files) > 1:
        print(f"  files: {len(description.files)}")


def _print_tensors(description: CheckpointDescription, reader: CheckpointReader, values: bool) -> None:
    rows = [(_visible(t.key), t.dtype, str(list(t.shape)), f"{t.nbytes:,}") for t in description.tensors]
    table = [("key", "dtype", "shape", "bytes"), *rows]
    key_width, dtype_width, shape_width, bytes_width = (max(map(len, column)) for column in zip(*table, strict=True))
    for number, (key, dtype, shape, nbytes) in enumerate(table):
        print(f"{key:<{key_width}}  {dtype:<{dtype_width}}  {shape:<{shape_width}}  {nbytes:>{bytes_width}}")
        if values and number:
            print(format_value(reader.get_tensor(description.tensors[number - 1].key)))
    for alias, kept in sorted(description.aliases.items()):
        print(f"{_visible(alias)} is another name of {_visible(kept)}")


def _visible(text: str) -> str:
    """Return text from a file with control characters escaped: it must not steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)

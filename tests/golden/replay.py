"""Replays a recorded scenario against a driver, and compares the outcomes. Knows neither TensorFlow nor torchsaver."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

# For each neutral error kind, the classes (or their subclasses) that may stand for it beside TF's own.
ACCEPTED = {
    "bad_argument": {"ValueError", "TypeError", "AssertionError", "AttributeError", "OverflowError"},
    "missing_key": {"LookupError", "ValueError", "RuntimeError"},
    "missing_checkpoint": {"ValueError", "OSError", "LookupError"},
    "missing_directory": {"ValueError", "OSError"},
    "name_collision": {"ValueError", "RuntimeError"},
    "shape_mismatch": {"ValueError", "RuntimeError"},
    "dtype_mismatch": {"ValueError", "TypeError", "RuntimeError"},
    "corrupt": {"TorchSaverError"},
    "invalid_state": {"ValueError"},
    "duplicate": {"ValueError"},
    "empty": {"ValueError"},
    "not_built": {"RuntimeError"},
    "missing_variable": {"ValueError", "LookupError"},
    "io_error": {"OSError", "ValueError", "RuntimeError"},
}


class Clock:
    """The only source of time of a scenario."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.hook: Callable[[], object] | None = None  # called after each sleep

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.hook is not None:
            self.hook()


class World:
    """The scenario's directory and clock: the operations that are the same for every implementation."""

    def __init__(self, driver: Any, clock: Clock, root: str) -> None:
        self.driver = driver
        self.clock = clock
        self.root = root

    def call(self, op: str, args: dict[str, Any]) -> Any:
        function: Callable[..., Any] = getattr(self, f"do_{op}", None) or getattr(self.driver, op)
        return self.neutral(function(**self.real(args)))

    def real(self, value: Any) -> Any:
        """Put the scenario's directory in place of $DIR, in every string."""
        return _map_strings(value, lambda text: text.replace("$DIR", self.root))

    def neutral(self, value: Any) -> Any:
        """Put $DIR in place of the scenario's directory, and texts in place of nan and inf."""
        return _map_strings(value, lambda text: text.replace(self.root, "$DIR"))

    # ---- files

    def do_write_text(self, path: str, text: str) -> None:
        Path(path).write_bytes(text.encode("utf-8"))

    def do_read_text(self, path: str) -> str:
        return Path(path).read_bytes().decode("utf-8")

    def do_list_dir(self, path: str) -> list[str]:
        prefixes = self.driver.checkpoints_on_disk(self.root)
        own = {os.path.basename(file) for prefix in prefixes for file in self.driver.checkpoint_files(prefix)}
        return sorted(name for name in os.listdir(path) if name not in own)

    def do_path_exists(self, path: str) -> bool:
        return os.path.exists(path)

    def do_mkdir(self, path: str) -> None:
        os.makedirs(path)

    def do_move(self, src: str, dst: str) -> None:
        shutil.move(src, dst)

    def do_copy_tree(self, src: str, dst: str) -> None:
        shutil.copytree(src, dst)

    def do_chdir(self, path: str) -> None:
        os.chdir(path)

    def do_delete_checkpoint(self, prefix: str) -> None:
        for file in self.driver.checkpoint_files(prefix):
            os.remove(file)

    def do_corrupt_checkpoint(self, prefix: str, keep_bytes: int = 0) -> None:
        for file in self.driver.checkpoint_files(prefix):
            Path(file).write_bytes(Path(file).read_bytes()[:keep_bytes] or b"junk")

    # ---- the clock

    def do_set_clock(self, time: float) -> None:
        self.clock.now = float(time)

    def do_advance_clock(self, seconds: float) -> None:
        self.clock.now += seconds

    # ---- saving, and what most scenarios compare

    def do_save(self, **args: Any) -> str | None:
        prefix: str | None = self.driver.save(**args)
        if prefix is not None:  # the files carry the fake clock's time
            for file in self.driver.checkpoint_files(prefix):
                os.utime(file, (self.clock.now, self.clock.now))
        return prefix

    def do_observe(self, saver: str | None = None, dir: str | None = None, latest_filename: str | None = None) -> Any:  # noqa: A002
        directory = self.root if dir is None else dir
        seen: dict[str, Any] = {}
        if saver is not None:
            seen["last_checkpoints"] = list(self.driver.last_checkpoints(saver))
        prefixes = self.driver.checkpoints_on_disk(self.root)
        seen["checkpoints_on_disk"] = sorted(os.path.relpath(prefix, self.root) for prefix in prefixes)
        args = {} if latest_filename is None else {"latest_filename": latest_filename}
        state = self.driver.get_checkpoint_state(directory, **args)
        paths = ("model_checkpoint_path", "all_model_checkpoint_paths")
        seen["state"] = state and {name: state[name] for name in paths}
        seen["latest_checkpoint"] = self.driver.latest_checkpoint(directory, **args)
        return seen


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, (list, tuple)):
        return [_map_strings(item, change) for item in value]
    if isinstance(value, dict):
        return {change(key): _map_strings(item, change) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value


def differences(driver: Any, clock: Clock, scenario: dict[str, Any], root: str) -> list[str]:
    """Run a scenario in `root` and return a line for each operation whose outcome is not the recorded one."""
    world = World(driver, clock, root)
    found = []
    for number, step in enumerate(scenario["ops"]):
        difference = _compare(world, step)
        if difference:
            found.append(f"op {number} {step['op']} {json.dumps(step.get('args', {}))}: {difference}")
    return found


def _compare(world: World, step: dict[str, Any]) -> str | None:
    wanted = step.get("error")
    try:
        result = world.call(step["op"], step.get("args", {}))
    except Exception as error:
        classes = {cls.__name__ for cls in type(error).__mro__}
        if wanted is None:
            return f"wanted {step['result']!r}, raised {error!r}"
        if not classes & {*ACCEPTED[wanted["kind"]], wanted["type"]}:
            return f"wanted {wanted['type']} ({wanted['kind']}), raised {error!r}"
        unnamed = [text for text in wanted["mentions"] if world.real(text) not in str(error)]
        return f"{error} does not name {unnamed}" if unnamed else None
    if wanted is not None:
        return f"wanted {wanted['type']}, got {result!r}"
    return None if result == step["result"] else f"\n  wanted {step['result']!r}\n  got    {result!r}"

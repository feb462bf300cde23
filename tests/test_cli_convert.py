"""`torchsaver convert`: what it prints, its exit codes, and that it is quiet where nobody looks."""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.crash_states import snapshot
from safetensors.torch import load_file

import torchsaver as ts
from torchsaver import cli
from torchsaver.cli import main
from torchsaver.conversion import convert as convert_module

RULES = """
[[rename]]
regex = '/kernel$'
to = ".weight"
[[rename]]
name = "step"
drop = true
[[layout]]
regex = '.*/kernel'
transform = "dense"
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TensorFlow's `tf`, our own `own` with tied weights, and torch.save's `m.pt`."""
    monkeypatch.chdir(tmp_path)
    ts.save_tf_checkpoint("tf", {"fc/kernel": torch.arange(6.0).reshape(2, 3), "step": torch.tensor(3)})
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(1, 1, bias=False), "b": torch.nn.Linear(1, 1, bias=False)})
    model["b"].weight = model["a"].weight
    ts.Saver(model).save("own", metadata={"loss": 0.5}, write_state=False)
    torch.save({"model": {"w": torch.ones(2)}, "epoch": 3}, "m.pt")
    (tmp_path / "rules.toml").write_text(RULES)
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines of the output; there is nothing on stderr."""
    found = capsys.readouterr()
    assert found.err == ""
    return found.out.splitlines()


# ---- what it does and prints


def test_converts_and_prints_a_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "tf", "new"]) == 0
    (line,) = printed(capsys)
    assert re.fullmatch(r"2 tensors, 32 bytes to new \(safetensors\) in \d+\.\d\d s", line)
    assert load_file("new.safetensors").keys() == {"fc/kernel", "step"}


@pytest.mark.parametrize(
    ("destination", "options", "files"),
    [
        ("new.safetensors", [], {"new.safetensors"}),
        ("new", ["--to", "tf"], {"new.index", "new.data-00000-of-00001"}),
        ("new.index", [], {"new.index", "new.data-00000-of-00001"}),
        (
            "new",
            ["--max-shard-bytes", "24"],
            {"new-00001-of-00002.safetensors", "new-00002-of-00002.safetensors", "new.safetensors.index.json"},
        ),
    ],
)
def test_format_is_safetensors_unless_asked_or_named_otherwise(
    destination: str, options: list[str], files: set[str], run: Path
) -> None:
    before = set(os.listdir())
    assert main(["convert", "tf", destination, *options]) == 0
    assert set(os.listdir()) - before == files


def test_map_renames_lays_out_and_leaves_out(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "tf", "new", "--map", "rules.toml"]) == 0
    lines = printed(capsys)
    assert lines[0] == "left out, a rule leaves it out: step"
    assert lines[1].startswith("1 tensor, 24 bytes to new (safetensors) in ")
    assert torch.equal(load_file("new.safetensors")["fc.weight"], torch.arange(6.0).reshape(2, 3).t())


def test_dry_run_prints_the_plan_and_writes_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(".")
    assert main(["convert", "tf", "new", "--map", "rules.toml", "--dry-run"]) == 0
    assert printed(capsys) == [
        "from       shape   dtype    layout  to         shape",
        "fc/kernel  [2, 3]  float32  dense   fc.weight  [3, 2]",
        "left out, a rule leaves it out: step",
        "1 tensor, 24 bytes would go to new (safetensors); nothing was written",
    ]
    assert main(["convert", "own", "new", "--dry-run"]) == 0
    assert printed(capsys) == [
        "from      shape   dtype    layout  to        shape",
        "a.weight  [1, 1]  float32          the same",
        "b.weight is another name of a.weight",
        "1 tensor, 4 bytes would go to new (safetensors); nothing was written",
    ]
    assert snapshot(".") == before


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_json_is_one_object_with_stable_names(
    options: list[str], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "m.pt", "new", "--to", "tf", "--json", *options]) == 0
    found: dict[str, Any] = json.loads("\n".join(printed(capsys)))
    assert isinstance(found.pop("secs"), float)
    assert found == {
        "source": "m.pt",
        "destination": "new",
        "format": "tf",
        "tensors": [
            {
                "from": "model.w",
                "dtype": "float32",
                "from_shape": [2],
                "key": "model.w",
                "shape": [2],
                "transform": None,
                "bytes": 8,
                "aliases": [],
            }
        ],
        "left_out": {"epoch": "no tensor"},
        "total_bytes": 8,
        "dry_run": bool(options),
    }


def test_what_is_left_out_is_named_up_to_three_of_a_kind_and_all_of_them_in_a_dry_run(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"w": torch.ones(1), **{f"n{n}": n for n in range(5)}}, "many.pt")
    assert main(["convert", "many.pt", "new", "--to", "tf"]) == 0
    assert printed(capsys)[0] == "left out, no tensor: n0, n1, n2, ... 5 in all"
    assert main(["convert", "many.pt", "other", "--to", "tf", "--dry-run"]) == 0
    assert "left out, no tensor: n0, n1, n2, n3, n4" in printed(capsys)


def test_control_characters_of_keys_do_not_reach_the_terminal(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"k\x1b[2J\n": torch.ones(1), "e\x1b[2J": 1}, "evil.pt")
    for options in ([], ["--json"], ["--dry-run"]):
        assert main(["convert", "evil.pt", "new", "--force", *options]) == 0
        assert all(line.isprintable() for line in printed(capsys))


# ---- what fails


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["none", "new"], "'none' is not a checkpoint"),
        (["tf", "own"], "a checkpoint is there; give another name, or replace it (--force"),
        (["tf", "own", "--dry-run"], "--force"),
        (["tf", "."], "the destination is a directory; add the checkpoint's name"),
        (["module.pt", "new"], "it holds torch.nn.modules.linear.Linear, and only tensors and plain values"),
        (["cut.pt", "new"], "'cut.pt' is damaged"),
        (["clash.pt", "new"], "nothing was converted, 2 problems: 'a.b' stands twice in it"),
        (["tf", "new", "--map", "none.toml"], "No such file or directory: 'none.toml'"),
        (["tf", "new", "--to", "tf", "--map", "rules.toml"], "[[layout]] leads between TensorFlow's files"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_failure_is_exit_code_1_and_one_line_and_writes_nothing(
    arguments: list[str], told: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(torch.nn.Linear(1, 1), "module.pt")
    torch.save({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}, "m": torch.ones(1, device="meta")}, "clash.pt")
    Path("cut.pt").write_bytes(Path("m.pt").read_bytes()[:-50])
    before = snapshot(".")
    for options in ([], ["--json"]):
        assert main(["convert", *arguments, *options]) == 1
        found = capsys.readouterr()
        assert (found.out, found.err.count("\n")) == ("", 1)
        assert found.err.startswith("torchsaver: ")
        assert told in found.err
    assert snapshot(".") == before


def test_force_replaces(run: Path) -> None:
    assert main(["convert", "tf", "own", "--force"]) == 0
    assert load_file("own.safetensors").keys() == {"fc/kernel", "step"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "the following arguments are required: SRC, DST"),
        (["tf"], "the following arguments are required: DST"),
        (["tf", "new", "--to", "pt"], "argument --to: invalid choice: 'pt'"),
        (["tf", "new", "--max-shard-bytes", "0"], "argument --max-shard-bytes: 0 is below 1"),
        (["tf", "new", "--max-shard-bytes", "1GB"], "argument --max-shard-bytes: invalid"),
        (["tf", "new.pt"], "destination 'new.pt' ends like a file that is not written here"),
        (["tf", "new.index", "--to", "safetensors"], "destination 'new.index' ends like a file"),
        (["tf", "new.safetensors", "--to", "tf"], "leave .safetensors off"),
        (["tf", "new/"], "has no file name"),
        (["tf", "new", "--map", "bad.toml"], "'bad.toml': [[rename]] 1 wants one of name, scope and regex"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_exit_code_2(
    arguments: list[str], told: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.toml").write_text("[[rename]]")
    before = snapshot(".")
    with pytest.raises(SystemExit) as caught:
        main(["convert", *arguments])
    found = capsys.readouterr()
    assert (caught.value.code, found.out) == (2, "")
    assert found.err.startswith("usage: torchsaver convert")
    assert told in found.err
    assert snapshot(".") == before


def test_value_error_of_a_bug_is_not_hidden(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise ValueError("a bug")

    monkeypatch.setattr(cli, "describe_checkpoint", failing)
    monkeypatch.setattr(convert_module, "plan_rows", failing)
    for arguments in (["inspect", "own"], ["convert", "tf", "new"]):
        with pytest.raises(ValueError, match="a bug"):
            main(arguments)


# ---- on a terminal, and elsewhere


def _rest_of(master: int) -> str:
    """Return what a terminal that is closed was sent; it does not all come at once."""
    shown = b""
    with contextlib.suppress(OSError), open(master, "rb", buffering=0) as reader:  # EIO is its end
        while part := reader.read(10_000):
            shown += part
    return shown.decode()


def test_bar_is_on_stderr_of_a_terminal_and_gone_at_the_end(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    master, slave = os.openpty()
    with open(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert main(["convert", "tf", "new"]) == 0
    shown = _rest_of(master)
    *drawings, erased, end = shown.replace("\r\r", "\r").removeprefix("\r").split("\r")
    assert all(re.fullmatch(r"new  .*B?/s *", drawing) for drawing in drawings)
    assert "0 bytes / 32 bytes" in drawings[0]
    assert (erased, end) == (" " * len(drawings[-1].rstrip()), "")
    assert capsys.readouterr().out.startswith("2 tensors")


@pytest.mark.parametrize("source", ["tf", "own", "m.pt", "old.pt"])
def test_command_is_quiet_where_there_is_no_terminal(source: str, run: Path) -> None:
    torch.save({"w": torch.ones(2)}, "old.pt", _use_new_zipfile_serialization=False, pickle_protocol=3)
    command = [sys.executable, "-m", "torchsaver", "convert", source, "new", "--to", "tf", "--json"]
    done = subprocess.run(command, cwd=run, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["destination"] == "new"

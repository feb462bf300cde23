"""The command line: what it prints, and its exit codes."""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from terminal import Terminal

import torchsaver as ts
from torchsaver.cli import main


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    values = {
        "w": torch.tensor([[1.0, float("nan")]]),
        "n": torch.tensor(3),
        "h": torch.tensor([1.5], dtype=torch.bfloat16),
    }
    ts.Saver(values).save("run/m", 5, metadata={"loss": 0.5})
    return tmp_path


def test_inspect_lists_key_dtype_shape_bytes_step_and_metadata(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["run/m-5", "  step: 5"]
    assert lines[2].startswith("  saved: ")
    assert lines[3:] == [
        '  metadata: {"loss": 0.5}',
        "key  dtype     shape   bytes",
        "h    bfloat16  [1]         2",
        "n    int64     []          8",
        "w    float32   [1, 2]      8",
        "3 tensors, 4 elements, 18 bytes",
    ]


def test_inspect_reads_no_values_unless_asked(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "run" / "m-5.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # a damaged value
    path.write_bytes(data)
    assert main(["inspect", "run/m-5"]) == 0
    assert main(["inspect", "run/m-5", "--values"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_inspect_key_with_values_prints_that_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "run", "--key", "w", "--values"]) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "key  dtype    shape   bytes",
        "w    float32  [1, 2]      8",
        "[[ 1. nan]]",
    ]


def test_inspect_json_is_one_object_that_parses(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "run", "--json", "--values"]) == 0
    described = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (described["global_step"], described["metadata"]) == (5, {"loss": 0.5})
    assert [tensor["key"] for tensor in described["tensors"]] == ["h", "n", "w"]
    assert described["tensors"][2] == {
        "key": "w",
        "dtype": "float32",
        "shape": [1, 2],
        "bytes": 8,
        "value": [[1.0, "nan"]],
    }


@pytest.mark.parametrize("arguments", [["run", "--key", "x"], ["nothing"], ["run/checkpoint"], ["."]], ids=" ".join)
def test_failure_is_exit_code_1_and_one_line_on_stderr(
    arguments: list[str], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", *arguments]) == 1
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert printed.err.startswith("torchsaver: ")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["inspect"],
        ["unknown"],
        ["inspect", "run", "--no-such-option"],
        ["verify"],
        ["ls"],
        ["ls", "run", "--values"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: torchsaver" in capsys.readouterr().err


def test_control_characters_of_a_file_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = ts.Saver({"a\x1b[2J\n": torch.ones(1)}).save(tmp_path / "m", metadata="\x1b]0;x\x07")
    assert main(["inspect", str(prefix)]) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", [[sys.executable, "-m", "torchsaver"], [str(Path(sys.executable).parent / "torchsaver")]]
)
def test_module_and_console_script_are_the_same_command(command: list[str], run: Path) -> None:
    done = subprocess.run([*command, "inspect", "run"], cwd=run, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("run/m-5\n")
    assert (
        subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
        == f"torchsaver {ts.__version__}\n"
    )


def _damage(path: Path, position: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.fixture
def runs(run: Path) -> Path:
    """m-5 from before, and a directory `runs` with m-1, m-2 (damaged) and m-3, a third party's file and its state."""
    saver = ts.Saver({"w": torch.ones(4), "n": torch.ones(2)})
    for step in (1, 2, 3):
        saver.save("runs/m", step)
    _damage(run / "runs" / "m-2.safetensors")
    save_file({"t": torch.ones(1)}, "runs/their.safetensors")
    return run / "runs"


def test_verify_prints_a_line_for_each_checkpoint_and_each_damage_and_a_summary(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", "runs"]) == 1
    printed = capsys.readouterr()
    sizes = {path.name: path.stat().st_size for path in runs.iterdir()}
    lines = printed.out.splitlines()
    with ts.load_checkpoint(runs / "m-2") as reader:
        offset = sizes["m-2.safetensors"] - reader.stored("w").nbytes
    assert lines[0] == f"runs/their: no checksums, structure checked only, 1 tensor, {sizes['their.safetensors']} bytes"
    assert lines[1] == f"runs/m-1: valid, 2 tensors, {sizes['m-1.safetensors']} bytes"
    assert lines[2] == f"runs/m-2: DAMAGED, 2 tensors, {sizes['m-2.safetensors']} bytes"
    assert lines[3].startswith(f"  runs/m-2.safetensors: w at byte {offset}: 'w' has the checksum ")
    assert lines[4] == f"runs/m-3: valid, 2 tensors, {sizes['m-3.safetensors']} bytes"
    assert lines[5].startswith("4 checkpoints: 2 valid, 1 no checksums, 1 DAMAGED; 6 tensors, 72 bytes compared in ")
    assert lines[5].endswith("B/s")
    assert (len(lines), printed.err) == (6, "")


@pytest.mark.parametrize("path", ["runs/m-1", "runs/m-1.safetensors", "run", "runs/their"])
def test_verify_of_what_holds_is_exit_code_0(path: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("1 checkpoint: ")
    assert len(lines) == 2


def test_verify_names_a_damaged_header_a_missing_shard_and_a_damaged_state_file(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ts.Saver({"a": torch.ones(4), "b": torch.ones(4)}, max_shard_bytes=16).save("run/s", 6)
    (run / "run" / "s-6-00001-of-00002.safetensors").unlink()
    _damage(run / "run" / "m-5.safetensors", 3)
    (run / "run" / "checkpoint").write_text("model_checkpoint_path: 7")
    assert main(["verify", "run"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("  run/m-5.safetensors: at byte 0: header length ")
    assert lines[3] == "  run/s-6-00001-of-00002.safetensors: it is missing, and the index names it"
    assert lines[4].startswith("run/checkpoint: at byte 0: it is no state file")
    assert "2 checkpoints: 2 DAMAGED; state file DAMAGED; 1 tensor, 16 bytes compared" in lines[5]


def test_verify_json_has_stable_names(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "checkpoint").write_text("")
    assert main(["verify", "runs", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"path", "ok", "state_file_damage", "checkpoints", "checked_bytes", "secs"}
    assert (found["path"], found["ok"], found["checked_bytes"]) == ("runs", False, 72)
    (state_file_damage,) = found["state_file_damage"]
    assert (state_file_damage["file"], state_file_damage["tensor"]) == ("runs/checkpoint", None)
    damaged = found["checkpoints"][2]
    (damage,) = damaged.pop("damage")
    assert set(damage) == {"file", "tensor", "offset", "reason"}
    assert (damage["file"], damage["tensor"], type(damage["offset"])) == ("runs/m-2.safetensors", "w", int)
    assert isinstance(damaged.pop("time"), float)
    assert damaged == {
        "name": "m-2",
        "save_path": "runs/m-2",
        "listed": "no",
        "verdict": "damaged",
        "global_step": 2,
        "sequence": 2,
        "alias_of": None,
        "files": ["runs/m-2.safetensors"],
        "file_bytes": (runs / "m-2.safetensors").stat().st_size,
        "tensors": 2,
        "checked_tensors": 2,
        "checked_bytes": 24,
        "problem": None,
    }


def test_verify_json_of_a_prefix_has_the_same_names(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "runs/m-1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (checkpoint,) = found["checkpoints"]
    assert (found["ok"], checkpoint["verdict"], checkpoint["listed"]) == (True, "valid", None)


def test_ls_is_a_table_oldest_first_with_verdict_and_place_in_the_state_file(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ls", "runs"]) == 1
    header, *rows, hint = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "step", "saved", "bytes", "valid", "listed"]
    cells = [re.split(r"  +", row) for row in rows]
    assert [(row[0], row[1], row[-2], row[-1]) for row in cells] == [
        ("their", "-", "no checksums", "-"),
        ("m-1", "1", "yes", "yes"),
        ("m-2", "2", "DAMAGED", "yes"),
        ("m-3", "3", "yes", "newest"),
    ]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", cells[1][2])
    assert "torchsaver verify" in hint


def test_ls_headers_sees_no_damaged_values(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "runs", "--headers"]) == 0
    assert capsys.readouterr().out.count("header ok") == 3
    _damage(runs / "m-2.safetensors", 3)
    assert main(["ls", "runs", "--headers"]) == 1


def test_ls_json_has_stable_names(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "runs", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"path", "ok", "state_file_damage", "checkpoints"}
    assert [row["listed"] for row in found["checkpoints"]] == ["no", "yes", "yes", "newest"]


def test_ls_says_why_there_is_no_verdict_and_that_the_state_file_is_damaged(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"x": torch.ones(1)}, "run/new.safetensors", {"torchsaver": '{"format_version":99}'})
    (run / "run" / "checkpoint").write_text("")
    assert main(["ls", "run"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == [
        "new",
        "-",
        "-",
        str((run / "run" / "new.safetensors").stat().st_size),
        "unsupported",
        "-",
    ]
    assert "newer than 1; upgrade torchsaver" in lines[3]
    assert lines[4].startswith("run/checkpoint: at byte 0: it names no newest checkpoint")


@pytest.mark.parametrize("command", ["ls", "verify"])
def test_empty_directory_is_said_to_be_and_exit_code_0(
    command: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "empty").mkdir()
    assert main([command, "empty"]) == 0
    assert "no checkpoints" in capsys.readouterr().out
    assert main([command, "empty", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["checkpoints"] == []


@pytest.mark.parametrize(
    "arguments", [["ls", "nothing"], ["ls", "run/checkpoint"], ["verify", "nothing"]], ids=" ".join
)
def test_what_is_not_there_is_exit_code_1_and_one_line(
    arguments: list[str], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert printed.err.startswith("torchsaver: ")


@pytest.mark.parametrize("command", ["ls", "verify"])
def test_latest_filename_names_the_state_file(command: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "run" / "other").write_text('model_checkpoint_path: "gone"')
    assert main([command, "run", "--latest-filename", "other"]) == 1
    assert "GONE" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["ls", "verify"])
@pytest.mark.parametrize("json_option", [[], ["--json"]])
def test_control_characters_of_names_and_keys_are_escaped(
    command: str, json_option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ts.Saver({"k\x1b[2J\n": torch.ones(1)}).save(tmp_path / "m\x1b]0;x\x07\x9b")
    _damage(next(tmp_path.glob("*.safetensors")))
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "g\\033[2J"')
    assert main([command, str(tmp_path), *json_option]) == 1
    assert all(line.isprintable() for line in capsys.readouterr().out.split("\n"))


@pytest.mark.parametrize("command", ["ls", "verify"])
def test_progress_bar_is_on_stderr_of_a_terminal_and_gone_at_the_end(
    command: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.closing(Terminal(80)) as terminal:
        monkeypatch.setattr(sys, "stderr", terminal.stream)
        assert main([command, "run"]) == 0
        shown = terminal.text()
    *drawings, erased, end = shown.replace("\r\r", "\r").removeprefix("\r").split("\r")
    assert all(re.fullmatch(r"m-5  .*B?/s *", drawing) for drawing in drawings)
    assert drawings
    assert (erased, end) == (" " * len(drawings[-1].rstrip()), "")
    assert "m-5" in capsys.readouterr().out


def test_verify_whose_output_is_not_read_keeps_its_exit_code(runs: Path) -> None:
    for number in range(300):
        (runs / f"{number}.safetensors").symlink_to("m-2.safetensors")
    command = f"{sys.executable} -m torchsaver verify runs | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")


def test_reader_of_the_output_that_goes_away_is_no_error(run: Path) -> None:
    ts.Saver({f"key{n:06}": torch.ones(1) for n in range(5000)}).save(run / "big")
    command = f"{sys.executable} -m torchsaver inspect big | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=run, capture_output=True, text=True, env=os.environ, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "big\n", "")

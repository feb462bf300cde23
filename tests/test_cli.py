"""The command line: what it prints, and its exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
    "arguments", [[], ["inspect"], ["unknown"], ["inspect", "run", "--no-such-option"]], ids=" ".join
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


def test_reader_of_the_output_that_goes_away_is_no_error(run: Path) -> None:
    ts.Saver({f"key{n:06}": torch.ones(1) for n in range(5000)}).save(run / "big")
    command = f"{sys.executable} -m torchsaver inspect big | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=run, capture_output=True, text=True, env=os.environ, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "big\n", "")

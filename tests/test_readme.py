"""The README's programs run, and print what the README says they print."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
CONSOLES = re.findall(r"```console\n(.*?)```", README, re.DOTALL)


def _run(arguments: list[str], directory: Path) -> str:
    """Return what a command of the console prints, and what a shell says of one that was killed."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, *arguments[1:]] if arguments[0] == "python" else arguments
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout + ("Killed\n" if done.returncode == -9 else "")


def _replay(console: str, directory: Path) -> str:
    printed = []
    for line in console.splitlines():
        if line.startswith("$ "):
            printed += [line + "\n", _run(line[2:].split(), directory)]
    return "".join(printed)


def test_first_program_prints_what_the_first_screen_says(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(PROGRAMS[0])
    assert _replay(CONSOLES[0], tmp_path) == CONSOLES[0]


def test_swap_program_prints_the_swapped_values_and_the_command_line_shows_its_file(tmp_path: Path) -> None:
    (tmp_path / "swap.py").write_text(PROGRAMS[1])
    assert _run(["python", "swap.py"], tmp_path) == CONSOLES[1]
    # A header's size depends on how many digits the clock has.
    changing = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d( +\d+  yes)?")
    assert changing.sub("DATE", _replay(CONSOLES[4], tmp_path)) == changing.sub("DATE", CONSOLES[4])


def test_program_with_the_whole_run_prints_why_each_checkpoint_stays(tmp_path: Path) -> None:
    (tmp_path / "full.py").write_text(PROGRAMS[2])
    printed = re.sub(r"(by min loss,) .*", r"\1 LOSS", _run(["python", "full.py"], tmp_path))
    assert printed == CONSOLES[2]
    assert os.path.samefile(tmp_path / "full" / "best.safetensors", tmp_path / "full" / "model.ckpt-1000.safetensors")


def test_migration_program_prints_its_plan(tmp_path: Path) -> None:
    (tmp_path / "migrate.py").write_text(PROGRAMS[3])
    assert _run(["python", "migrate.py"], tmp_path) == CONSOLES[3]


def test_readme_has_no_program_or_console_that_is_not_run() -> None:
    assert (len(PROGRAMS), len(CONSOLES)) == (4, 5)


EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize(
    "example", [path for path in EXAMPLES if path.stem != "train_digits"], ids=lambda path: path.stem
)
def test_example_runs_and_shows_what_it_claims(example: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, example], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_digits_example_ends_bit_identical_after_a_real_kill(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    example = next(path for path in EXAMPLES if path.stem == "train_digits")
    printed = subprocess.run(
        [sys.executable, example], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert "exit code -9" in printed
    assert "resumed from model.ckpt-100" in printed
    assert printed.endswith("bit-identical: all 8 tensors of model and optimizer\n")


def test_every_example_fits_on_a_page() -> None:
    assert {
        path.name: len(path.read_text().splitlines()) for path in EXAMPLES if path.read_text().count("\n") >= 60
    } == {}

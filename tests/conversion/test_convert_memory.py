"""Converting takes the memory of the largest tensor, whatever the checkpoint's size."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import torchsaver as ts
from torchsaver.conversion.plan import Format

PROGRAM = """
import re, sys
from torchsaver.conversion.convert import convert_checkpoint
source, to, small, directory = sys.argv[1:]

def mb(name):
    with open("/proc/self/status") as status:
        return int(re.search(name + r":\\s+(\\d+) kB", status.read())[1]) / 1024

convert_checkpoint(small, directory + "/warm", to=to)
with open("/proc/self/clear_refs", "w") as refs:
    refs.write("5")  # the peak is counted from here
whole, own, peak = mb("VmRSS"), mb("RssAnon"), []
convert_checkpoint(source, directory + "/m", to=to, progress=lambda _: peak.append(mb("RssAnon")))
print(mb("VmHWM") - whole, max(peak) - own)
"""
LARGEST_MB, LIMIT_MB = 4, 64


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """300 MB in tensors of four, of each format, and small ones of the same."""
    directory = tmp_path_factory.mktemp("large")
    for name, count in (("large", 75), ("small", 1)):
        values = {f"w{n}": torch.full((1 << 20,), float(n)) for n in range(count)}
        ts.save_tf_checkpoint(directory / f"{name}.tf", values)
        ts.Saver(values).save(directory / f"{name}.own", write_state=False)
        torch.save(values, directory / f"{name}.pt")
    yield directory
    shutil.rmtree(directory)


@pytest.mark.parametrize(("kind", "to"), [("tf", "safetensors"), ("own", "tf"), ("own", "safetensors"), ("pt", "tf")])
def test_memory_is_bounded_by_the_largest_tensor(kind: str, to: Format, large: Path, tmp_path: Path) -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system does not count a peak anew")
    command = [sys.executable, "-c", PROGRAM, str(large / f"large.{kind}"), to, str(large / f"small.{kind}")]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120)
    shutil.rmtree(tmp_path)
    whole, own = map(float, done.stdout.split())
    assert own < LIMIT_MB + LARGEST_MB
    if kind != "pt":  # which is mapped: the system counts its pages, and takes them back as it likes
        assert whole < LIMIT_MB + LARGEST_MB

"""Memory above the model stays within a few windows, for saving and for restoring, whatever the tensors look like."""

import subprocess
import sys
from pathlib import Path

import pytest

LIMIT_MB = 64
PROGRAM = """
import resource, sys, torch, torchsaver as ts
kind, directory = sys.argv[1:]
MB = 1 << 20

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def model(fill):
    whole = torch.full((256, 1024, 256), fill)  # 256 MB
    if kind == "transposed":
        return {"w": whole.transpose(0, 2)}
    if kind == "many":
        return {str(number): part for number, part in enumerate(whole.reshape(64, -1))}
    return {"w": whole}

options = {"max_shard_bytes": 100 * MB} if kind == "sharded" else {}
warm = ts.Saver({"x": torch.ones(1)})
warm.restore(warm.save(directory + "/warm"))
values = model(3.0)
before = peak_mb()
saver = ts.Saver(values, **options)
prefix = saver.save(directory + "/m")
saved = peak_mb()
for value in values.values():
    value.zero_()
saver.restore(prefix)
assert all(value[(-1,) * value.dim()] == 3.0 for value in values.values())
print(saved - before, peak_mb() - saved)
"""


@pytest.mark.parametrize("kind", ["whole", "transposed", "many", "sharded"])
def test_peak_memory_above_the_model_is_bounded(kind: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, kind, str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    above_saving, above_restoring = map(float, printed.split())
    assert above_saving < LIMIT_MB
    assert above_restoring < LIMIT_MB

"""Memory above the model stays within a few windows, for saving and for restoring, whatever the tensors look like."""

import subprocess
import sys
from pathlib import Path

import pytest

LIMIT_MB = 64
PROGRAM = """
import re, sys, torch, torchsaver as ts
kind, directory = sys.argv[1:]
MB = 1 << 20

def peak_mb():  # not ru_maxrss, in which a child starts with its parent's
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read())[1]) / 1024

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
if kind == "tensorflow":  # in parts along an axis, so that no part is a run of the tensor's memory
    prefix = ts.save_tf_checkpoint(directory + "/m", values, partitions={"w": [1, 4, 2]})
elif kind == "tensorflow whole":
    prefix = ts.save_tf_checkpoint(directory + "/m", values)
else:
    prefix = saver.save(directory + "/m")
saved = peak_mb()
for value in values.values():
    value.zero_()
saver.restore(prefix)
assert all(value[(-1,) * value.dim()] == 3.0 for value in values.values())
print(saved - before, peak_mb() - saved)
"""


@pytest.mark.parametrize("kind", ["whole", "transposed", "many", "sharded", "tensorflow", "tensorflow whole"])
def test_peak_memory_above_the_model_is_bounded(kind: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, kind, str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    above_saving, above_restoring = map(float, printed.split())
    assert above_saving < LIMIT_MB
    assert above_restoring < LIMIT_MB


OWN_PEAK = """
import re, sys, torch, torchsaver as ts
prefix, MB = sys.argv[1] + "/m", 1 << 20

def mb(name):
    with open("/proc/self/status") as status:
        return int(re.search(name + r":\\s+(\\d+) kB", status.read())[1]) / 1024

def above(call):
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")  # the peak is counted from here
    before = mb("VmRSS")
    call()
    return mb("VmHWM") - before

warm = ts.Saver({"x": torch.ones(1)})
warm.restore(warm.save(prefix))
for dtype in (torch.float32, torch.bfloat16):
    for turned in (False, True):
        whole = torch.full((256 * MB // dtype.itemsize // 65536, 256, 256), 3.0, dtype=dtype)
        saver = ts.Saver({"w": whole.transpose(0, 1) if turned else whole})
        print(dtype, turned, "save", above(lambda: saver.save(prefix)), sep=",")
        for verify in (True, False):
            whole.zero_()
            print(dtype, turned, f"restore {verify}", above(lambda: saver.restore(prefix, verify=verify)), sep=",")
            assert whole.view(-1)[-1] == 3
        del whole, saver
"""


def test_memory_that_a_save_or_restore_takes_for_itself_is_bounded(tmp_path: Path) -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system does not count a peak anew")
    command = [sys.executable, "-c", OWN_PEAK, str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    peaks = {what: float(peak) for what, _, peak in (line.rpartition(",") for line in printed.splitlines())}
    assert len(peaks) == 12
    assert {what: peak for what, peak in peaks.items() if peak >= LIMIT_MB} == {}

"""Every optimizer of torch with every scheduler, stopped and started again in another process and order: bit-identical.

What runs, on either side, is in training_matrix.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import training_matrix
from torch.optim import lr_scheduler, swa_utils
from training_matrix import OPTIMIZERS, SCHEDULERS, Run, pairs

FIRST, SAVED, LAST = 0, 3, 6
Descriptions = dict[str, dict[str, Any]]


def _both(device: str, directory: Path) -> tuple[Descriptions, Descriptions]:
    """Return what each pair is at the end: uninterrupted, and restored by a fresh process."""
    expected = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for pair in pairs(device):
            run = Run(pair, "abc", device)
            run.train(FIRST, SAVED)
            run.saver.save(directory / pair, write_state=False)
            run.train(SAVED, LAST)
            expected[pair] = run.description()
    finally:
        torch.set_num_threads(threads)
    command = [sys.executable, training_matrix.__file__, str(directory), device, str(SAVED), str(LAST)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return expected, json.loads(process.stdout)


@pytest.fixture(scope="module")
def cpu(tmp_path_factory: pytest.TempPathFactory) -> tuple[Descriptions, Descriptions]:
    return _both("cpu", tmp_path_factory.mktemp("matrix"))


def test_every_optimizer_and_scheduler_of_torch_is_in_the_matrix() -> None:
    optimizers = {name for name, cls in vars(torch.optim).items() if _is_kind(cls, torch.optim.Optimizer)}
    schedulers = {
        name
        for module in (lr_scheduler, swa_utils)
        for name, cls in vars(module).items()
        if _is_kind(cls, lr_scheduler.LRScheduler) and not name.startswith("_")
    }
    assert optimizers == set(OPTIMIZERS)
    assert schedulers == set(SCHEDULERS)


def _is_kind(value: Any, kind: type) -> bool:
    return isinstance(value, type) and issubclass(value, kind) and value is not kind


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_goes_on_bit_identically_in_a_fresh_process_and_another_order(
    optimizer: str, scheduler: str, cpu: tuple[Descriptions, Descriptions]
) -> None:
    expected, found = (each for each in cpu)
    pair = f"{optimizer}/{scheduler}"
    if optimizer != "LBFGS":
        assert found[f"{pair}/cab"] == expected[pair]
        return
    # LBFGS sums over all parameters end to end: another order is another order of float sums, and rounds otherwise.
    assert found[f"{pair}/abc"] == expected[pair]
    for name, values in expected[pair]["values"].items():
        assert found[f"{pair}/cab"]["values"][name] == pytest.approx(values, rel=1e-4, abs=1e-5)


def test_training_changes_what_is_compared(cpu: tuple[Descriptions, Descriptions]) -> None:
    expected, _ = cpu
    for pair, description in expected.items():
        fresh = Run(pair, "abc", "cpu").description()
        assert all(fresh["weights"][name] != text for name, text in description["weights"].items())
        assert fresh["scheduler"] != description["scheduler"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_training_on_cuda_goes_on_bit_identically_in_a_fresh_process_and_another_order(tmp_path: Path) -> None:
    expected, found = _both("cuda", tmp_path)
    differing = [
        f"{pair} {what}: {value} and {found[f'{pair}/cab'][what]}"
        for pair, description in expected.items()
        for what, value in description.items()
        if found[f"{pair}/cab"][what] != value
    ]
    assert differing == []

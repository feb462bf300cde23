"""print_tensors_in_checkpoint_file: TF's format (the recorded scenarios compare it too), and ours where TF has none."""

from pathlib import Path

import pytest
import torch

import torchsaver as ts
from torchsaver.formats.tensor_bytes import TORCH_DTYPES
from torchsaver.inspection.listing import format_value


@pytest.mark.parametrize("dtype", [*TORCH_DTYPES.values(), torch.complex128], ids=str)
def test_every_dtype_can_be_printed(dtype: torch.dtype, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = torch.zeros(2 * dtype.itemsize, dtype=torch.uint8).view(dtype)
    ts.print_tensors_in_checkpoint_file(ts.Saver({"x": value}).save(tmp_path / "m"), all_tensors=True)
    name = str(dtype).removeprefix("torch.")
    first, second, last = capsys.readouterr().out.splitlines()
    assert first == f"tensor: x ({name}) [2]"
    assert second.startswith("[")
    assert last == "# Total number of params: 2"


def test_bfloat16_is_shown_exactly() -> None:
    assert format_value(torch.tensor([1.5, -0.0], dtype=torch.bfloat16)) == "[ 1.5 -0. ]"
    assert format_value(torch.tensor(2.0)) == "2.0"


def test_error_is_raised_and_nothing_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ts.CheckpointNotFoundError, match="nowhere"):
        ts.print_tensors_in_checkpoint_file(tmp_path / "nowhere", all_tensors=True)
    assert capsys.readouterr().out == ""

"""Values as text: TF's printed listing of a checkpoint, and a tensor as a terminal and as JSON show it."""

from __future__ import annotations

import math
import os
import re
from typing import Any

import torch

from torchsaver.formats.tensor_bytes import dtype_text
from torchsaver.reader import CheckpointReader, load_checkpoint


def format_value(tensor: torch.Tensor) -> str:
    """Return a value as numpy prints it; dtypes numpy lacks are shown as the float32 they are exactly."""
    if tensor.dtype == getattr(torch, "float4_e2m1fn_x2", None):
        return f"{tensor.view(torch.uint8).numpy()} (two float4 a byte)"
    exotic = tensor.dtype == torch.bfloat16 or dtype_text(tensor.dtype).startswith("float8")
    array = (tensor.float() if exotic else tensor).numpy()
    return str(array[()])


def json_value(tensor: torch.Tensor) -> Any:
    """Return a value as JSON has it: nested lists; nan and inf as texts, complex numbers as pairs of numbers."""
    if tensor.is_complex():
        return json_value(torch.view_as_real(tensor))
    if tensor.dtype == getattr(torch, "float4_e2m1fn_x2", None):
        return tensor.view(torch.uint8).tolist()
    return _finite_or_text(tensor.double().tolist() if tensor.is_floating_point() else tensor.tolist())


def _finite_or_text(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite_or_text(item) for item in value]
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def print_tensors_in_checkpoint_file(
    file_name: str | os.PathLike[str],
    *,
    tensor_name: str | None = None,
    all_tensors: bool = False,
    all_tensor_names: bool = False,
    count_exclude_pattern: str = "",
) -> None:
    """Print the tensors of a checkpoint, in TF's format.

    With `all_tensors` or `all_tensor_names`, a line for each; else, with `tensor_name`, that one with its value; else
    the reader's summary. The last line counts the parameters. Unlike TF, an error is raised, not printed.

    Args:
        file_name: A prefix or file; a directory stands for its newest checkpoint.
        tensor_name: The one to print; when it is not there, that is printed.
        all_tensors: Print every tensor with its value.
        all_tensor_names: Print every tensor's name, dtype and shape.
        count_exclude_pattern: Regular expression; tensors whose name it is found in are not counted.

    Raises:
        CheckpointNotFoundError, CorruptCheckpointError, UnsupportedCheckpointError, OSError: As `load_checkpoint`.
        re.error: `count_exclude_pattern` is no regular expression.
    """
    excluded = re.compile(count_exclude_pattern) if count_exclude_pattern else None
    with load_checkpoint(file_name) as reader:
        if all_tensors or all_tensor_names:
            for key in reader.keys():
                _print_tensor(reader, key, with_value=all_tensors)
        elif tensor_name:
            if not reader.has_tensor(tensor_name):
                print(f"Tensor {tensor_name} not found in checkpoint")
                return
            _print_tensor(reader, tensor_name, with_value=True)
        else:
            print(reader.debug_string().decode("utf-8"))
        counts = {key: math.prod(reader.stored(key).shape) for key in reader.keys()}
    if excluded is not None:
        left_out = [key for key in counts if excluded.search(key)]
        count = sum(counts.pop(key) for key in left_out)
        print(f"# Excluding {len(left_out)} tensors ({count} params) that match {count_exclude_pattern} when counting.")
    print(f"# Total number of params: {sum(counts.values())}")


def _print_tensor(reader: CheckpointReader, key: str, *, with_value: bool) -> None:
    stored = reader.stored(key)
    print(f"tensor: {key} ({dtype_text(stored.dtype)}) {list(stored.shape)}")
    if with_value:
        print(format_value(reader.get_tensor(key)))

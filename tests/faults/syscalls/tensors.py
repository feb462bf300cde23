"""Tensors whose every byte says which save they are of."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Tensors = dict[str, npt.NDArray[Any]]

_ROWS, _COLUMNS = 96, 128


def make_tensors(step: int, scale: int = 1) -> Tensors:
    """Return the tensors of save `step`: about 50 KB times `scale`."""

    def tensor(salt: int, *shape: int) -> npt.NDArray[Any]:
        count = np.arange(np.prod(shape), dtype=np.int64)
        return ((count * 7 + step * 1000003 + salt) % 65521 + 1).astype(np.float32).reshape(shape)

    return {
        "w": tensor(1, _ROWS * scale, _COLUMNS),
        "b": tensor(2, 33),
        "k0": tensor(3, 17, 5),
        "step": np.asarray(step, dtype=np.int64),
    }


def identify(tensors: Tensors) -> int | str:
    """Return the step of the one save that `tensors` are, bit for bit; else a text that says what is wrong."""
    try:
        step = int(tensors["step"].reshape(()))
        want = make_tensors(step, max(1, tensors["w"].size // (_ROWS * _COLUMNS)))
        if set(want) != set(tensors):
            return f"names: {sorted(set(want) ^ set(tensors))[:4]}"
        for name, value in want.items():
            got = tensors[name]
            if got.shape != value.shape or got.dtype != value.dtype:
                return f"shape or dtype of {name}"
            if got.tobytes() != value.tobytes():
                return f"bytes of {name}"
    except Exception as error:  # whatever is wrong with them, they are not a save
        return f"{type(error).__name__}: {str(error)[:80]}"
    return step

"""How many steps an Adam of TensorFlow 1 has taken: it is stored as powers of its betas, and no number."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

_MOST_STEPS = 10_000_000  # that are gone through, in 40 MB
_DTYPES: dict[torch.dtype, Any] = {torch.float32: np.float32, torch.float64: np.float64}


def steps_of_powers(
    pairs: Iterable[tuple[torch.Tensor, torch.Tensor]], betas: tuple[float, float], global_step: int | None
) -> int | None:
    """Return the number of steps after which beta1_power and beta2_power are what is stored; None if that is unclear.

    TensorFlow multiplies in float32 and starts with the beta itself, so a power after t steps is the very float32 that
    t multiplications give: that is looked for, and both powers have to agree. beta1_power is too small to tell after
    some 1,000 steps, beta2_power after 90,000: what has become of both is checked then, and global_step taken.

    Args:
        pairs: The stored powers: of one optimizer, or of several of which one has these betas.
        betas: Those of torch's optimizer, which has to have TensorFlow's.
        global_step: As stored in the checkpoint.
    """
    found = set()
    for powers in pairs:
        counts = [_count(power, beta) for power, beta in zip(powers, betas, strict=True)]
        known = {count for count in counts if count is not None}
        if -1 in known or len(known) > 1:
            continue
        steps = known.pop() if known else global_step
        if steps is None or all(
            _is_too_small(beta, steps) for count, beta in zip(counts, betas, strict=True) if count is None
        ):
            found.add(steps)
    return found.pop() if len(found) == 1 else None


def _count(power: torch.Tensor, beta: float) -> int | None:
    """Return after how many steps a power is this; None if it is too small to tell, -1 if it is no such power."""
    kind = _DTYPES.get(power.dtype)
    if kind is None or power.dim() or not 0 <= beta < 1:
        return -1
    smallest = float(np.finfo(kind).tiny)  # below, TensorFlow makes it 0
    value = kind(power.item())
    if 0 <= value < smallest:
        return None
    if beta == 0:
        return -1
    longest = min(_MOST_STEPS, math.ceil(math.log(smallest) / math.log(beta)) + 1)
    powers = np.multiply.accumulate(np.full(longest, beta, kind))
    hits = np.flatnonzero(powers == value)
    return int(hits[0]) if len(hits) == 1 else -1


def _is_too_small(beta: float, steps: int) -> bool:
    """Return whether a power is so small after so many steps that it tells nothing."""
    return beta == 0 or (steps + 1) * math.log(beta) < math.log(np.finfo(np.float32).tiny) * 0.99

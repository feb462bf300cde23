"""Orbax, which saves JAX arrays; these cannot be changed, so that restoring makes new ones."""

from __future__ import annotations

import logging
import os
import warnings
from itertools import islice
from typing import Any

from benchmarks.peers.peer import Way, one_way
from benchmarks.workloads import Workload

os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # type: ignore[import-not-found]  # this environment is another
import numpy as np
import orbax.checkpoint as ocp  # type: ignore[import-not-found]


class OrbaxValues:
    """Arrays by name."""

    def __init__(self, arrays: dict[str, jax.Array]) -> None:
        self.by_name = arrays

    @classmethod
    def make(cls, workload: Workload) -> OrbaxValues:
        """Return the arrays of a workload.

        Raises:
            ValueError: It is not of plain fp32 arrays.
        """
        if workload.dtype != "float32" or workload.has_moments or workload.has_views:
            raise ValueError(f"{workload.name} is not for Orbax")
        random = np.random.default_rng(0)
        shapes = workload.shapes.items()
        return cls({name: jax.numpy.asarray(random.standard_normal(shape, dtype=np.float32)) for name, shape in shapes})

    @property
    def tensors(self) -> int:
        """How many names there are."""
        return len(self.by_name)

    @property
    def bytes(self) -> int:
        """What they take in memory."""
        return sum(array.nbytes for array in self.by_name.values())

    def first(self, count: int) -> OrbaxValues:
        """Return the first of them."""
        return OrbaxValues(dict(islice(self.by_name.items(), count)))

    def repair(self) -> None:
        """Do nothing: there is one peer only."""


class OrbaxCheckpointer:
    """A Checkpointer of a tree of arrays, with its defaults (OCDBT)."""

    extension = ""
    is_durable = False

    def __init__(self, values: OrbaxValues) -> None:
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
        self._arrays = values.by_name
        self._restored: dict[str, Any] = {}
        self._is_checking = False
        self._checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())

    def save(self, path: str) -> None:
        """Save all arrays."""
        self._checkpointer.save(path, args=ocp.args.PyTreeSave(self._arrays))

    def ways(self) -> dict[str, Way]:
        """Return the one way."""
        return {"new arrays": one_way(self._restore, is_into_existing=False)}

    def clear(self) -> None:
        """Keep the arrays of the next restore, to be compared; those of others would be in the way of what follows."""
        self._is_checking = True

    def is_restored(self) -> bool | None:
        """Return whether every array that was restored is what was saved."""
        is_restored = all(bool((self._restored[name] == array).all()) for name, array in self._arrays.items())
        self._restored, self._is_checking = {}, False
        return is_restored

    def _restore(self, path: str) -> None:
        arguments = {
            name: ocp.ArrayRestoreArgs(sharding=array.sharding, global_shape=array.shape, dtype=array.dtype)
            for name, array in self._arrays.items()
        }
        order = ocp.args.PyTreeRestore(item=self._arrays, restore_args=arguments)
        restored = jax.block_until_ready(self._checkpointer.restore(path, args=order))
        if self._is_checking:
            self._restored = restored

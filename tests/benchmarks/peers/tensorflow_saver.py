"""tf.train.Saver itself, on variables of a graph."""

from __future__ import annotations

import os
import zlib
from itertools import islice
from typing import Any

from benchmarks.peers.peer import Way, one_way
from benchmarks.workloads import Shapes, Workload

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="", TF_ENABLE_ONEDNN_OPTS="0")

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped]  # this environment is another

v1 = tf.compat.v1


class TensorflowValues:
    """Names and shapes of fp32 variables; the values are made in the graph of the saver."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes

    @classmethod
    def make(cls, workload: Workload) -> TensorflowValues:
        """Return the variables of a workload.

        Raises:
            ValueError: It is not of plain fp32 variables.
        """
        if workload.dtype != "float32" or workload.has_moments or workload.has_views:
            raise ValueError(f"{workload.name} is not for TensorFlow")
        return cls(workload.shapes)

    @property
    def tensors(self) -> int:
        """How many names there are."""
        return len(self.shapes)

    @property
    def bytes(self) -> int:
        """What they take in memory."""
        return sum(4 * tf.TensorShape(shape).num_elements() for shape in self.shapes.values())

    def first(self, count: int) -> TensorflowValues:
        """Return the first of them."""
        return TensorflowValues(dict(islice(self.shapes.items(), count)))

    def repair(self) -> None:
        """Do nothing: there is one peer only."""


class TensorflowSaver:
    """A session, its variables, and a Saver for them."""

    extension = ""
    is_durable = False

    def __init__(self, values: TensorflowValues) -> None:
        v1.disable_eager_execution()
        v1.logging.set_verbosity(v1.logging.ERROR)
        v1.reset_default_graph()
        zeros = v1.zeros_initializer()
        self._variables = [
            v1.get_variable(name.replace(".", "/"), shape, initializer=zeros, use_resource=True)
            for name, shape in values.shapes.items()
        ]
        self._clear = v1.global_variables_initializer()
        self._saver = v1.train.Saver(self._variables, max_to_keep=None)
        options = v1.ConfigProto()
        options.graph_options.rewrite_options.disable_meta_optimizer = True  # minutes, for thousands of variables
        self._session = v1.Session(config=options)
        random = np.random.default_rng(0)
        self._session.run(
            self._clear,
            {each.initial_value: random.standard_normal(each.shape, dtype=np.float32) for each in self._variables},
        )
        self._digests = self._read_digests()

    def save(self, path: str) -> None:
        """Save all variables, without the graph."""
        os.makedirs(path, exist_ok=True)
        self._saver.save(self._session, f"{path}/ckpt", write_meta_graph=False)

    def ways(self) -> dict[str, Way]:
        """Return the one way."""
        return {"": one_way(lambda path: self._saver.restore(self._session, f"{path}/ckpt"))}

    def clear(self) -> None:
        """Set everything to zero."""
        self._session.run(self._clear)

    def is_restored(self) -> bool | None:
        """Return whether every variable is what it was made as."""
        return self._read_digests() == self._digests

    def _read_digests(self) -> list[int]:
        values: list[Any] = self._session.run(self._variables)
        return [zlib.crc32(value) for value in values]

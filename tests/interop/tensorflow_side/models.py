"""Models of Keras: made and trained a little, saved, and computed with again after a restore."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped]
from interop.records import Record
from interop.tensorflow_side.values import to_array, to_record

v1 = tf.compat.v1
keras = tf.keras


def _convnet() -> Any:
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            keras.layers.Conv2D(5, (3, 2), name="conv"),
            keras.layers.BatchNormalization(name="bn"),
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, name="head"),
        ],
        name="net",
    )


def _recurrent() -> Any:
    layers = [keras.Input((6, 4)), keras.layers.GRU(5, name="gru"), keras.layers.Dense(3, name="head")]
    return keras.Sequential(layers, name="net")


_KINDS = {"convnet": _convnet, "recurrent": _recurrent}


def _made(kind: str, seed: int) -> Any:
    """Return a model and its optimizer, both with all their variables."""
    keras.utils.set_random_seed(seed)
    model = _KINDS[kind]()
    model.compile(keras.optimizers.Adam(0.01), "mse", run_eagerly=True)
    inputs = np.random.default_rng(seed).normal(size=(16, *model.input_shape[1:])).astype(np.float32)
    model.fit(inputs, np.ones((16, 3), np.float32), epochs=3, verbose=0)
    return model


def _by_name(model: Any) -> dict[str, Any]:
    return {variable.path: variable.value for variable in model.weights}


def _checkpoint(model: Any) -> Any:
    return tf.train.Checkpoint(model=model, optimizer=model.optimizer)


def train_model(kind: str, by_name: str, by_objects: str) -> dict[str, Any]:
    """Train a model, save it by the names of its variables and by objects; return inputs, outputs and weights."""
    model = _made(kind, seed=1)
    v1.train.Saver(_by_name(model)).save(None, by_name, write_meta_graph=False, write_state=False)
    _checkpoint(model).write(by_objects)
    inputs = np.random.default_rng(2).normal(size=(4, *model.input_shape[1:])).astype(np.float32)
    return {
        "inputs": to_record(inputs),
        "outputs": to_record(model(inputs, training=False)),
        "weights": {name: to_record(value) for name, value in _by_name(model).items()},
    }


def compute_model(kind: str, prefix: str, way: str, inputs: Record) -> dict[str, Any]:
    """Return outputs and weights of a new model that was restored in one of the ways TensorFlow has."""
    model = _made(kind, seed=3)
    if way == "saver":
        v1.train.Saver(_by_name(model)).restore(None, prefix)
    elif way == "full names":
        # Of the variables: TensorFlow does not look for names within Keras 3's own, which wrap them.
        tf.train.Checkpoint(weights=list(_by_name(model).values())).restore(prefix).assert_existing_objects_matched()
    else:
        assert way == "objects"
        _checkpoint(model).read(prefix).assert_consumed()
    return {
        "outputs": to_record(model(to_array(inputs), training=False)),
        "weights": {name: to_record(value) for name, value in _by_name(model).items()},
        "optimizer": [to_record(variable.value) for variable in model.optimizer.variables],
    }


TASKS = (train_model, compute_model)

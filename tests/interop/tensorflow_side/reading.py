"""Checkpoints read by TensorFlow, in each of the ways it has."""

from __future__ import annotations

import os
from typing import Any

import tensorflow as tf  # type: ignore[import-untyped]
from interop.records import Record
from interop.tensorflow_side.values import blank, to_record

v1 = tf.compat.v1


def read_with_reader(prefix: str) -> dict[str, Record]:
    """Return all that tf.train.load_checkpoint finds."""
    reader = tf.train.load_checkpoint(prefix)
    dtypes = reader.get_variable_to_dtype_map()
    found = {}
    for key, shape in reader.get_variable_to_shape_map().items():
        found[key] = to_record(reader.get_tensor(key), dtypes[key])
        assert found[key]["shape"] == shape, (key, shape)
    return found


def read_with_op(prefix: str, dtypes: dict[str, str]) -> dict[str, Record]:
    """Return what the op beneath every Saver restores under these names, which may be of any bytes."""
    names = [os.fsencode(name) for name in dtypes]
    kinds = [tf.as_dtype(dtype) for dtype in dtypes.values()]
    values = tf.raw_ops.RestoreV2(prefix=prefix, tensor_names=names, shape_and_slices=[""] * len(names), dtypes=kinds)
    return {name: to_record(value) for name, value in zip(dtypes, values, strict=True)}


def restore_with_saver(prefix: str, variables: dict[str, Record]) -> dict[str, Record]:
    """Return the values of new variables after tf.compat.v1.train.Saver(...).restore; a record gives dtype and shape."""
    with tf.Graph().as_default(), v1.Session() as session:
        made = {
            name: v1.Variable(blank(each["dtype"], each["shape"]), dtype=each["dtype"], use_resource=True)
            for name, each in variables.items()
        }
        v1.train.Saver(made).restore(session, prefix)
        return {name: to_record(session.run(made[name]), each["dtype"]) for name, each in variables.items()}


def restore_partitioned(prefix: str, name: str, dtype: str, shape: list[int], *, parts: int, axis: int) -> list[Record]:
    """Return the parts of a variable that TensorFlow has partitioned, and a Saver has restored."""
    with tf.Graph().as_default(), v1.Session() as session:
        partitioner = v1.fixed_size_partitioner(parts, axis=axis)
        variable = v1.get_variable(
            name, shape, tf.as_dtype(dtype), initializer=v1.zeros_initializer(), partitioner=partitioner
        )
        v1.train.Saver().restore(session, prefix)
        return [to_record(session.run(part), dtype) for part in variable]


def read_slice(prefix: str, name: str, dtype: str, spec: str) -> Record:
    """Return a slice of a variable, by its spec: "10 4 0,5:-" is rows [0, 5) of a variable of [10, 4]."""
    (value,) = tf.raw_ops.RestoreV2(
        prefix=prefix, tensor_names=[name], shape_and_slices=[spec], dtypes=[tf.as_dtype(dtype)]
    )
    return to_record(value)


def restore_checkpoint(prefix: str, variables: dict[str, Record]) -> dict[str, Record]:
    """Return the values of variables with these names after tf.train.Checkpoint(...).restore, in any order."""
    made = {}
    for number, (name, each) in enumerate(variables.items()):
        made[name] = tf.Variable(blank(each["dtype"], each["shape"]), dtype=each["dtype"], name=name)
        assert made[name].name == f"{name}:0", number
    checkpoint = tf.train.Checkpoint(**{f"v{number}": variable for number, variable in enumerate(made.values())})
    checkpoint.restore(prefix).assert_existing_objects_matched()
    return {name: to_record(variable) for name, variable in made.items()}


def state(directory: str, latest_filename: str | None = None) -> dict[str, Any]:
    """Return what TensorFlow makes of a directory's state file, and every tensor of the newest checkpoint."""
    latest = tf.train.latest_checkpoint(directory, latest_filename)
    found = tf.train.get_checkpoint_state(directory, latest_filename)
    return {
        "latest": latest,
        "model_checkpoint_path": found.model_checkpoint_path,
        "all_model_checkpoint_paths": list(found.all_model_checkpoint_paths),
        "all_model_checkpoint_timestamps": list(found.all_model_checkpoint_timestamps),
        "values": None if latest is None else read_with_reader(latest),
    }


def continue_manager(directory: str, max_to_keep: int, saves: int) -> dict[str, Any]:
    """Go on in a directory with tf.train.CheckpointManager, and return what it found, and what it kept."""
    checkpoint = tf.train.Checkpoint(step=tf.Variable(0, dtype=tf.int64))
    manager = tf.train.CheckpointManager(checkpoint, directory, max_to_keep=max_to_keep)
    found = list(manager.checkpoints)
    for number in range(saves):
        manager.save(checkpoint_number=100 + number)
    return {"found": found, "kept": list(manager.checkpoints), "latest": manager.latest_checkpoint}


TASKS = (
    read_with_reader,
    read_with_op,
    restore_with_saver,
    restore_partitioned,
    read_slice,
    restore_checkpoint,
    state,
    continue_manager,
)

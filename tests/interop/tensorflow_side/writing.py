"""Checkpoints written by TensorFlow, in each of the ways it has."""

from __future__ import annotations

from typing import Any

import tensorflow as tf  # type: ignore[import-untyped]
from interop.records import Record
from interop.tensorflow_side.values import to_array, to_record

v1 = tf.compat.v1
_DEVICES = 3


def write_with_saver(
    prefix: str,
    tensors: dict[str, Record],
    version: int = 2,
    partitions: dict[str, list[int]] | None = None,
    is_sharded: bool = False,
) -> str:
    """Save variables with tf.compat.v1.train.Saver, and return what it says is the prefix.

    `partitions` has the parts and the axis of a variable to be partitioned; sharded ones are on several devices in turn.
    """
    config = v1.ConfigProto(device_count={"CPU": _DEVICES}, allow_soft_placement=True)
    with tf.Graph().as_default(), v1.Session(config=config) as session:
        made: dict[str, Any] = {}
        for number, (name, each) in enumerate(tensors.items()):
            with tf.device(f"/cpu:{number % _DEVICES if is_sharded else 0}"):
                if name in (partitions or {}):
                    made[name] = _partitioned(name, to_array(each), *(partitions or {})[name])
                else:
                    made[name] = v1.Variable(to_array(each), dtype=each["dtype"], use_resource=True)
        session.run(v1.global_variables_initializer())
        saver = v1.train.Saver(made, sharded=is_sharded, write_version=version)
        return str(saver.save(session, prefix, write_meta_graph=False, write_state=False))


def _partitioned(name: str, array: Any, parts: int, axis: int) -> Any:
    """Return a partitioned variable with these values."""

    def initial(shape: Any, dtype: Any = None, partition_info: Any = None) -> Any:
        offset = partition_info.var_offset
        return tf.constant(
            array[tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))], dtype
        )

    return v1.get_variable(
        name,
        array.shape,
        tf.as_dtype(array.dtype),
        initializer=initial,
        partitioner=v1.fixed_size_partitioner(parts, axis=axis),
    )


def write_objects(prefix: str, max_shard_bytes: int | None = None) -> dict[str, Record]:
    """Save objects of every kind with tf.train.Checkpoint, and return their values by path."""
    shared = tf.Variable(tf.random.normal([5, 4], seed=1), name="shared")
    root = tf.Module()
    root.layer = tf.Module()
    root.layer.kernel, root.layer.again = shared, shared
    root.items = [tf.Variable(number, dtype=tf.int64) for number in range(3)]
    root.table = {"with/slash": tf.Variable(2.5, dtype=tf.bfloat16), "with.dot": tf.Variable([True, False])}
    if max_shard_bytes is None:  # its policy of shards takes no array of strings, and loses what is empty
        root.text = tf.Variable([["a", ""], ["\u00e9", "x" * 300]])
        root.empty = tf.Variable(tf.zeros([0, 3]))
    checkpoint = tf.train.Checkpoint(root=root, step=tf.Variable(7, dtype=tf.int64))
    options = None
    if max_shard_bytes is not None:
        policy = tf.train.experimental.MaxShardSizePolicy(max_shard_bytes)
        options = tf.train.CheckpointOptions(experimental_sharding_callback=policy)
    checkpoint.write(prefix, options)
    values = {
        "root/layer/kernel": shared,
        "root/layer/again": shared,
        "shared": shared,
        **{f"root/items/{number}": each for number, each in enumerate(root.items)},
        "root/table/with/slash": root.table["with/slash"],
        "root/table/with.Sslash": root.table["with/slash"],
        "root/table/with..dot": root.table["with.dot"],
        "step": checkpoint.step,
    }
    if max_shard_bytes is None:
        values.update({"root/text": root.text, "root/empty": root.empty})
    return {path: to_record(value) for path, value in values.items()}


def write_with_manager(directory: str, saves: int, max_to_keep: int) -> dict[str, Any]:
    """Save with tf.train.CheckpointManager; return what it keeps and the last value."""
    counter = tf.Variable(0.0, name="counter")
    checkpoint = tf.train.Checkpoint(counter=counter)
    manager = tf.train.CheckpointManager(checkpoint, directory, max_to_keep=max_to_keep)
    for number in range(saves):
        counter.assign(number + 0.5)
        manager.save()
    return {"kept": list(manager.checkpoints), "counter": to_record(counter)}


TASKS = (write_with_saver, write_objects, write_with_manager)

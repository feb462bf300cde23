"""Records what real TensorFlow reads from the checkpoints beside this file, into expected.json.

python -m venv /tmp/tf && /tmp/tf/bin/pip install tensorflow-cpu==2.21.0 && /tmp/tf/bin/python record.py
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import tensorflow as tf

HERE = Path(__file__).parent
PREFIXES = [
    "serving_v1_export/export-00000-of-00001",
    "serving_tf1_snappy/variables",
    "serving_tf2_half_plus_two/variables",
    "ffn_fib25/model.ckpt-27465036",
    "basic_pitch/variables",
    "t2t_transformer/model.ckpt-1",
    "sugyan_mnist_v1/simple.ckpt",
    "deepconsensus_index_only/checkpoint-1",
]


def record(prefix: str) -> dict[str, object]:
    reader = tf.train.load_checkpoint(str(HERE / prefix))
    tensors = {}
    for key, shape in sorted(reader.get_variable_to_shape_map().items()):
        dtype = reader.get_variable_to_dtype_map()[key].name
        tensors[key] = {"dtype": dtype, "shape": shape}
        if prefix.startswith("deepconsensus"):
            continue  # only the index is there
        value = reader.get_tensor(key)
        if dtype == "string":  # np.asarray would cut zeros off the end of a string
            data = value if isinstance(value, bytes) else b"".join(value.reshape(-1).tolist())
        else:
            data = np.ascontiguousarray(value).tobytes()
        tensors[key]["sha256"] = hashlib.sha256(data).hexdigest()
    return tensors


recorded = {prefix: record(prefix) for prefix in PREFIXES}
(HERE / "expected.json").write_text(json.dumps(recorded, indent=0, sort_keys=True) + "\n")

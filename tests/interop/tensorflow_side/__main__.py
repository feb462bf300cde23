"""Answer requests, a line of JSON each, until there are no more: `python -m interop.tensorflow_side`, run by peer.py.

A request names one of the functions in TASKS and has its arguments; the answer is what it returns, or the error.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

os.environ.update({"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "KERAS_BACKEND": "tensorflow"})
_answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever else is printed is no answer

import tensorflow as tf  # type: ignore[import-untyped]  # noqa: E402
from interop.tensorflow_side import models, reading, writing  # noqa: E402


def versions() -> dict[str, Any]:
    """Return TensorFlow's version, and which of ours can be imported here."""
    ours = [name for name in ("torch", "torchsaver") if importlib.util.find_spec(name)]
    return {"tensorflow": tf.__version__, "ours": ours}


TASKS: dict[str, Callable[..., Any]] = {
    task.__name__: task for task in (versions, *reading.TASKS, *writing.TASKS, *models.TASKS)
}


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    tf.keras.backend.clear_session()
    try:
        return {"value": TASKS[request["task"]](**request["arguments"])}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


for line in sys.stdin:
    print(json.dumps(_answer(json.loads(line))), file=_answers, flush=True)

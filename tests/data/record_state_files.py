"""Records how the real TensorFlow reads state files that torchsaver writes, into state_files.json. Run twice:

python tests/data/record_state_files.py write    # where torchsaver is installed: the states and their texts
python tests/data/record_state_files.py read     # where TensorFlow 2.21 is: what tf.train.get_checkpoint_state says
"""

import json
import os
import sys
import tempfile
from pathlib import Path

RECORD = Path(__file__).with_name("state_files.json")
NAMES = [
    "m-1",
    "/abs/m-1",
    "../up/m",
    "a b",
    "é",
    "日本",
    "q\"uo'te",
    "tab\tx",
    "new\nline",
    "\r",
    "\x01\x1f\x7f",
    "😀",
    "back\\slash",
    "#%s{b}$V~",
    "\x85\u2028",
]
TIMES = [[], [0.0], [1712345678.125, 2.0], [0.1, 1e20, 1e-7, 5e-324], [1.7976931348623157e308, 1712345678.1234567]]


def write() -> None:
    from torchsaver.storage.state_file import CheckpointState, format_state

    states = [CheckpointState(name, [f"{name}-old", name]) for name in NAMES]
    states += [CheckpointState("m", ["m"] * len(times), times, last) for times in TIMES for last in (0.0, 0.1, 1e-300)]
    cases = [{"state": vars(state), "text": format_state(state)} for state in states]
    RECORD.write_text(json.dumps(cases, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")


def read() -> None:
    import tensorflow as tf

    cases = json.loads(RECORD.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as directory:
        for case in cases:
            Path(directory, "checkpoint").write_bytes(case["text"].encode("utf-8"))
            state = tf.train.get_checkpoint_state(directory)
            case["tensorflow"] = {
                "model_checkpoint_path": os.path.relpath(state.model_checkpoint_path, directory)
                if not state.model_checkpoint_path.startswith("/abs")
                else state.model_checkpoint_path,
                "all_model_checkpoint_paths": [
                    path if path.startswith("/abs") else os.path.relpath(path, directory)
                    for path in state.all_model_checkpoint_paths
                ],
                "all_model_checkpoint_timestamps": list(state.all_model_checkpoint_timestamps),
                "last_preserved_timestamp": state.last_preserved_timestamp,
            }
            case["tensorflow_version"] = tf.__version__
    RECORD.write_text(json.dumps(cases, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]]()

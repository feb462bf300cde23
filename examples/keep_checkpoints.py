"""Which checkpoints stay: the last three, and one for each hour of training."""

import os
import tempfile
import time
from unittest import mock

import torchsaver as ts

directory = tempfile.mkdtemp()
started = time.time()

with ts.Collection(), mock.patch("time.time") as clock:  # a day of training in no time
    clock.return_value = started
    weight = ts.Variable([1.0, 2.0], name="weight")

    # torchsaver: a window of three, and beside it one checkpoint an hour for ever
    saver = ts.Saver([weight], max_to_keep=3, keep_checkpoint_every_n_hours=1)
    for step in range(1, 13):
        clock.return_value = started + step * 20 * 60
        saver.save(os.path.join(directory, "model.ckpt"), global_step=step)

    # torchsaver: the window is in the state file, the hourly ones are on the disk only
    window = [os.path.basename(prefix) for prefix in saver.last_checkpoints]
    on_disk = sorted((name for name in os.listdir(directory) if name != "checkpoint"), key=lambda n: int(n[11:-12]))
    print("window: ", *window)
    print("on disk:", *on_disk)
    assert window == ["model.ckpt-10", "model.ckpt-11", "model.ckpt-12"]
    assert on_disk == [f"model.ckpt-{step}.safetensors" for step in (4, 7, 10, 11, 12)]

    # torchsaver: after a restart a new saver takes the list over, and goes on removing
    restarted = ts.Saver([weight], max_to_keep=3)
    restarted.recover_last_checkpoints(ts.get_checkpoint_state(directory).all_model_checkpoint_paths)
    restarted.save(os.path.join(directory, "model.ckpt"), global_step=13)
    print("after a restart:", *(os.path.basename(prefix) for prefix in restarted.last_checkpoints))
    assert not ts.checkpoint_exists(os.path.join(directory, "model.ckpt-10"))

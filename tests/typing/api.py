"""The public API as users write it: type-checked by mypy --strict, never run."""

from pathlib import Path
from typing import Any

import torch
from typing_extensions import assert_type

import torchsaver as ts

model = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
v1 = ts.Variable(1.0, name="v1", trainable=False, dtype=torch.float64)
assert_type(v1, torch.nn.Parameter)
assert_type(ts.track(model, "net"), torch.nn.Module)

saver = ts.Saver({"model": model, "optimizer": optimizer}, max_to_keep=3, keep_checkpoint_every_n_hours=0.5)
ts.Saver([v1])
ts.Saver([("w", model.weight)])
ts.Saver(model.named_parameters())
ts.Saver(list(model.parameters()), names_from=model)
ts.Saver(model, **saver.settings)
with ts.Collection() as collection:
    assert_type(collection, ts.Collection)
    ts.Saver(allow_empty=True, defer_build=True).build()

prefix = saver.save("run/model.ckpt", global_step=torch.tensor(3), latest_filename="best", metadata={"loss": 0.5})
assert_type(prefix, str | None)
assert prefix is not None
report = saver.restore(Path(prefix), strict=False, verify=False)
assert_type(report, ts.RestoreReport)
assert_type(report.restored, tuple[str, ...])
assert_type(report.global_step, int | None)
assert_type(report.metadata, Any)
assert_type(saver.last_checkpoints, list[str])
if (resumed := saver.resume("run", latest_filename="best")) is not None:
    assert_type(resumed, ts.RestoreReport)
    assert_type(resumed.skipped, tuple[ts.SkippedCheckpoint, ...])
assert_type(ts.newest_valid_checkpoint(Path("run")), str | None)

state = ts.get_checkpoint_state("run", latest_filename="best")
assert_type(state, ts.CheckpointState | None)
if state is not None:
    saver.recover_last_checkpoints(state.all_model_checkpoint_paths)
assert_type(ts.latest_checkpoint(Path("run")), str | None)
assert_type(ts.checkpoint_exists(prefix), bool)
assert_type(ts.get_checkpoint_mtimes([prefix]), list[float])
assert_type(ts.list_variables("run"), list[tuple[str, list[int]]])
assert_type(ts.load_variable("run", "w"), torch.Tensor | Any)  # Any: a string variable of TensorFlow's
with ts.load_checkpoint("run") as reader:
    assert_type(reader.get_tensor("w"), torch.Tensor | Any)
    assert_type(reader.get_slice("w")[2:4], torch.Tensor | Any)
    assert_type(reader.get_variable_to_shape_map(), dict[str, list[int]])
    assert_type(reader.get_variable_to_dtype_map(), dict[str, torch.dtype | Any])
    assert_type(reader.debug_string(), bytes)

ema = torch.optim.swa_utils.AveragedModel(model)
keep = [
    ts.Latest(2, alias="last"),
    ts.Best("loss", 1, mode="max"),
    ts.EveryNSteps(10),
    ts.EveryNHours(0.5),
    ts.Pinned("m-1"),
]
full = ts.Saver(
    {"model": model, "rng": ts.RNGState(generators={"data": torch.Generator()}), "step": ts.Counter(3)},
    keep=keep,
    background=True,
    when_busy="skip",
    on_saved=lambda saved: assert_type(saved, ts.SavedCheckpoint),
)
with full, ts.swapped(model, ema):
    full.save("run/model.ckpt", ts.Counter(), metrics={"loss": 0.5})
assert_type(full.plan(), list[ts.Decision])
assert_type(full.plan()[0].save_path, str)
assert_type(full.latest_checkpoint, str | None)
assert_type(full.wait(), None)
assert_type(ts.prune_checkpoints("run", keep, dry_run=True), list[ts.Decision])
steps = ts.training_steps(full, "run/model.ckpt", total=10, save_steps=2, save_secs=600)
for step in steps:
    assert_type(step, int)
    steps.metrics["loss"] = 0.5
assert_type(steps.report, ts.RestoreReport | None)
for path in ts.checkpoints_iterator("run", timeout=1, timeout_fn=lambda: True):
    assert_type(path, str)
hook = ts.CheckpointSaverHook("run", save_secs=600, saver=full, listeners=[ts.CheckpointSaverListener()])
assert_type(hook.after_run(3), bool)
manager = ts.CheckpointManager({"model": model}, Path("run"), max_to_keep=None)
assert_type(manager.save(), str | None)
assert_type(manager.checkpoints, list[str])

try:
    saver.restore("run/model.ckpt-1")
except ts.MismatchError as error:
    assert_type(error.missing, tuple[str, ...])
    assert_type(error.shapes, tuple[tuple[str, list[int], list[int]], ...])
except ts.NoValidCheckpointError as error:
    assert_type(error.skipped[0].reason, str)
except (ts.CheckpointNotFoundError, ts.CorruptCheckpointError, ts.UnsupportedCheckpointError) as error:
    assert_type(str(error), str)

ts.no_such_name  # type: ignore[attr-defined]  # noqa: B018  a name that is not there is found out

"""Mixed precision, a schedule, averages, shuffled batches: after a SIGTERM in mid-epoch it goes on bit-identically."""

import multiprocessing
import os
import random
import signal
import tempfile

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import torchsaver as ts


def train(directory: str, term_at: int | None) -> None:
    """Train, or go on with it; in step `term_at` comes a SIGTERM."""
    _ = random.seed(0), np.random.seed(0), torch.manual_seed(0)
    digits = load_digits()
    images, labels = torch.tensor(digits.images).float().flatten(1) / 16, torch.tensor(digits.target)
    model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10))
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 120)
    scaler, order = torch.amp.GradScaler("cpu"), torch.arange(len(images))
    state = {"model": model, "ema": ema, "optimizer": optimizer, "schedule": schedule, "scaler": scaler, "order": order}
    # torchsaver: the whole run; the last two checkpoints stay, and the one with the least loss
    saver = ts.Saver({**state, "rng": ts.RNGState()}, keep=[ts.Latest(2), ts.Best("loss", 1)], background=True)
    steps = ts.training_steps(saver, os.path.join(directory, "model.ckpt"), total=120, save_steps=20)  # torchsaver
    for step in steps:  # torchsaver: goes on where the last run ended, saves when due, at the end, and on a signal
        if step % 17 == 0:  # a new epoch
            order.copy_(torch.randperm(len(images)))
        batch = order[step % 17 * 100 :][:100]
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        ema.update_parameters(model)
        with torch.no_grad(), ts.swapped(model.eval(), ema):  # torchsaver: in here, the model has the averages
            steps.metrics["loss"] = nn.functional.cross_entropy(model(images), labels).item()
        model.train()
        if step == term_at:
            os.kill(os.getpid(), signal.SIGTERM)
    print("preempted:" if steps.preempted else "finished:", *map(os.path.basename, saver.last_checkpoints), flush=True)


if __name__ == "__main__":
    undisturbed, ended = tempfile.mkdtemp(), tempfile.mkdtemp()
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as processes:
        processes.starmap(train, [(undisturbed, None), (ended, 47), (ended, None)], chunksize=1)
    one, two = ts.load_checkpoint(undisturbed), ts.load_checkpoint(ended)
    assert (one.keys(), one.object_trees) == (two.keys(), two.object_trees)
    assert all(torch.equal(one.get_tensor(key), two.get_tensor(key)) for key in one.keys())
    print(f"bit-identical: {len(one.keys())} tensors, and the rest of {', '.join(one.object_trees)}")

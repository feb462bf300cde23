"""A convnet learns handwritten digits, is really killed half-way, and ends bit-identical to an undisturbed run."""

import multiprocessing
import os
import tempfile

import torch
from sklearn.datasets import load_digits
from torch import nn

import torchsaver as ts

STEPS, SAVE_EVERY, KILL_AT = 300, 50, 130


def train(directory: str, kill_at: int | None) -> None:
    """Train from the latest checkpoint in `directory`, or from the beginning; die after step `kill_at`."""
    torch.manual_seed(0)
    digits = load_digits()
    images, labels = torch.tensor(digits.images).float().unsqueeze(1) / 16, torch.tensor(digits.target)
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    saver = ts.Saver({"model": model, "optimizer": optimizer}, max_to_keep=3)  # torchsaver: what to save, how many stay
    first = 1
    if report := saver.resume(directory):  # torchsaver: weights, momenta, step and the list of checkpoints come back
        first = report.global_step + 1
        print(f"  resumed from {os.path.basename(report.save_path)}", flush=True)
    for step in range(first, STEPS + 1):
        batch = torch.randint(len(images), (64,), generator=torch.Generator().manual_seed(step))
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % SAVE_EVERY == 0:
            saver.save(os.path.join(directory, "model.ckpt"), global_step=step)  # torchsaver: durable when it returns
        if step == kill_at:
            os.kill(os.getpid(), 9)  # SIGKILL: no handler, no cleanup
    accuracy = (model(images).argmax(1) == labels).float().mean().item()
    print(f"  finished step {STEPS}: {accuracy:.0%} of the digits right", flush=True)


def run(what: str, directory: str, kill_at: int | None = None) -> None:
    """Train in a process of its own."""
    print(what, flush=True)
    process = multiprocessing.get_context("spawn").Process(target=train, args=(directory, kill_at))
    process.start()
    process.join()
    print(f"  exit code {process.exitcode}; files: {' '.join(sorted(os.listdir(directory)))}")


if __name__ == "__main__":
    undisturbed, killed = tempfile.mkdtemp(), tempfile.mkdtemp()
    run("undisturbed:", undisturbed)
    run(f"killed after step {KILL_AT}:", killed, kill_at=KILL_AT)
    run("started again:", killed)
    one, two = ts.load_checkpoint(undisturbed), ts.load_checkpoint(killed)
    assert all(torch.equal(one.get_tensor(key), two.get_tensor(key)) for key in one.keys())
    print(f"bit-identical: all {len(one.keys())} tensors of model and optimizer")

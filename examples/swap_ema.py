"""Train with an average of the weights, evaluate and save on it, and resume: model and average each get their own."""

import os
import tempfile

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import torchsaver as ts

STEPS, SAVE_AT = 200, 100
torch.manual_seed(0)
points = torch.rand(512, 2) * 2 - 1
labels = (points.norm(dim=1) < 0.8).long()


class Run:
    """A model, its average and its optimizer, as a script that starts has them."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(2, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.95), use_buffers=True)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        # torchsaver: the weights to train on and their average, each under its own key
        self.saver = ts.Saver({"model": self.model, "ema": self.ema, "optimizer": self.optimizer})

    def train(self, first: int, last: int) -> None:
        """Take the steps `first` to `last`."""
        for step in range(first, last + 1):
            batch = torch.randint(len(points), (16,), generator=torch.Generator().manual_seed(step))
            loss = nn.functional.cross_entropy(self.model.train()(points[batch]), labels[batch])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.ema.update_parameters(self.model)

    def accuracy(self) -> float:
        """Return the part of the points that the model gets right."""
        return (self.model.eval()(points).argmax(1) == labels).float().mean().item()


directory, run = tempfile.mkdtemp(), Run()
run.train(1, SAVE_AT)
raw = run.accuracy()
with ts.swapped(run.model, run.ema):  # torchsaver: the model has the averages, until the end of the block
    print(f"step {SAVE_AT}: {raw:.1%} right with the weights, {run.accuracy():.1%} with their average")
    run.saver.save(os.path.join(directory, "model.ckpt"), SAVE_AT)  # torchsaver: "model" is still what it trains on
run.train(SAVE_AT + 1, STEPS)

resumed = Run()
report = resumed.saver.resume(directory)  # torchsaver: nothing has changed places
print(f"resumed from {os.path.basename(report.save_path)}: {resumed.accuracy():.1%} right with the weights")
assert resumed.accuracy() == raw
resumed.train(report.global_step + 1, STEPS)
for one, two in ((run.model, resumed.model), (run.ema, resumed.ema)):
    assert all(map(torch.equal, one.state_dict().values(), two.state_dict().values()))
print(f"step {STEPS}: model and average are bit-identical to the run that was not resumed")

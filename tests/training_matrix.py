"""Every optimizer with every scheduler of torch, on a tiny model: built, trained, described; also run as a process.

    python training_matrix.py PREFIX DEVICE STEPS

restores every pair's checkpoint, `PREFIX/PAIR`, into objects that are built in another order, takes so many steps, and
prints a JSON object {pair: description of all there is then}.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import lr_scheduler, swa_utils

import torchsaver as ts

LAYERS = "abc"


class Model(torch.nn.Module):
    """Three layers in a row, registered in the order that is asked for; `sparse` ones look their weights up."""

    def __init__(self, order: str, sparse: bool) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleDict()
        for name in order:
            generator = torch.Generator().manual_seed(ord(name))
            values = torch.randn(4, 4, generator=generator)
            layer = torch.nn.Embedding(4, 4, sparse=True) if sparse else torch.nn.Linear(4, 4, bias=False)
            layer.weight = torch.nn.Parameter(values)
            self.layers[name] = layer

    def forward(self, inputs: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        for name in LAYERS:
            layer = self.layers[name]
            inputs = torch.tanh(inputs * layer(rows) if isinstance(layer, torch.nn.Embedding) else layer(inputs))
        return inputs


# Where a variant matters to what is stored; tests/variables/test_optimizers.py has all of them.
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.1)),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.1),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.1),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.1),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=0.1),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, lr_decay=0.01),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.1, t0=1.0),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1, centered=True, momentum=0.9),
    "SparseAdam": lambda p: torch.optim.SparseAdam(p, lr=0.1),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=2),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1),
    "Muon": lambda p: torch.optim.Muon(p, lr=0.1, ns_steps=1),
}
OPTIMIZERS = {name: make for name, make in OPTIMIZERS.items() if hasattr(torch.optim, name)}
CUDA_OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "Adam fused": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True, fused=True),
    "AdamW capturable": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.1, device="cuda"), capturable=True),
    "NAdam capturable": lambda p: torch.optim.NAdam(p, lr=0.1, capturable=True),
    "RMSprop capturable": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9, capturable=True),
    "ASGD foreach": lambda p: torch.optim.ASGD(p, lr=0.1, t0=1.0, foreach=True),
}


class Halving:
    """A callable object, whose state LambdaLR saves too."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, epoch: int) -> float:
        self.calls += 1
        return 0.5**epoch


def _cycles_momentum(optimizer: torch.optim.Optimizer) -> bool:
    return "momentum" in optimizer.defaults or "betas" in optimizer.defaults


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, Halving()),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 2, 4]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.1, total_iters=4),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=4),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 4),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(
        o, 0.01, 0.2, 2, scale_fn=lambda x: 0.9**x, cycle_momentum=_cycles_momentum(o)
    ),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=9, cycle_momentum=_cycles_momentum(o)),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=10.0),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[4]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.StepLR(o, 2), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.01, anneal_epochs=4),
}


class Run:
    """A model, its optimizer and its scheduler in training.

    Args:
        pair: Names of optimizer and scheduler, with a slash.
        order: In which layers are registered, and the optimizer has their weights.
        device: Where they are.
    """

    def __init__(self, pair: str, order: str, device: str) -> None:
        kind, scheduler = pair.split("/")
        self.device = device
        self.model = Model(order, sparse=kind == "SparseAdam").to(device)
        weights = [self.model.layers[name].weight for name in order]
        self.optimizer = {**OPTIMIZERS, **CUDA_OPTIMIZERS}[kind](weights)
        self.scheduler = SCHEDULERS[scheduler](self.optimizer)
        objects = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        self.saver = ts.Saver(dict(sorted(objects.items(), reverse=order != LAYERS)))

    def train(self, first: int, stop: int) -> None:
        """Take the steps from `first` up to `stop`."""
        for number in range(first, stop):
            inputs = torch.linspace(-1, 1 + number, 8, device=self.device).reshape(2, 4)
            rows = torch.tensor([number % 4, 3], device=self.device)

            def closure(inputs: torch.Tensor = inputs, rows: torch.Tensor = rows) -> torch.Tensor:
                self.optimizer.zero_grad()
                loss = (self.model(inputs, rows) - 0.3).square().sum()
                loss.backward()
                return loss

            loss = self.optimizer.step(closure)
            is_on_plateau = isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau)
            self.scheduler.step(*([float(loss.detach())] if is_on_plateau else []))

    def description(self) -> dict[str, Any]:
        """Return all there is, by name, bit for bit, as JSON has it."""
        layers = {name: layer.weight for name, layer in sorted(self.model.layers.items())}
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        return {
            "weights": {name: _text(weight.detach()) for name, weight in layers.items()},
            "values": {name: weight.detach().flatten().tolist() for name, weight in layers.items()},
            "states": {name: _text(self.optimizer.state.get(weight, {})) for name, weight in layers.items()},
            "groups": _text(groups),
            "scheduler": _text(self.scheduler.state_dict()),
        }


def _text(value: Any) -> str:
    """Return a text that is the same for the same values of the same types only."""
    if isinstance(value, torch.Tensor):
        held = value.detach().cpu().contiguous()
        digest = hashlib.sha256(held.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        return f"tensor({value.dtype}, {list(value.shape)}, {value.device.type}, {digest})"
    if isinstance(value, dict):
        pairs = sorted(f"{key!r}: {_text(item)}" for key, item in value.items())
        return f"{type(value).__name__}({', '.join(pairs)})"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}({', '.join(map(_text, value))})"
    return f"{type(value).__name__}({value!r})"


def pairs(device: str) -> list[str]:
    """Return the names of all pairs for a device: fewer where each kernel takes its time."""
    if device == "cpu":
        return [f"{optimizer}/{scheduler}" for optimizer in OPTIMIZERS for scheduler in SCHEDULERS]
    return [f"{optimizer}/{scheduler}" for optimizer in CUDA_OPTIMIZERS for scheduler in ("OneCycleLR", "SWALR")]


def main() -> None:
    prefix, device, first, stop = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    found = {}
    for pair in pairs(device):
        for order in ("abc", "cab"):
            if order == "abc" and not pair.startswith("LBFGS"):
                continue
            run = Run(pair, order, device)
            run.saver.restore(f"{prefix}/{pair}")
            run.train(first, stop)
            found[f"{pair}/{order}"] = run.description()
    print(json.dumps(found))


if __name__ == "__main__":
    main()

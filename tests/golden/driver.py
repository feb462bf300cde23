"""The recorded operations in terms of torchsaver's public API."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
from typing import Any

import numpy as np
import torch
from golden.replay import Clock

import torchsaver as ts
from torchsaver.loop.checkpoint_waiting import checkpoints_iterator
from torchsaver.loop.saver_hook import CheckpointSaverHook, CheckpointSaverListener
from torchsaver.manager import CheckpointManager


def _tensor(value: Any) -> torch.Tensor:
    """Return a recorded value as a tensor: plain nested lists are float32."""
    if isinstance(value, dict):
        return torch.tensor(value["data"], dtype=getattr(torch, value["dtype"])).reshape(value["shape"])
    return torch.tensor(value, dtype=torch.float32)


def _path(path: Any) -> Any:
    match path:
        case {"bytes": text}:
            return text.encode()
        case {"pathlib": text}:
            return pathlib.Path(text)
    return path


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Model:
    """Named variables in a collection of their own."""

    def __init__(self, variables: dict[str, Any]) -> None:
        self.collection = ts.Collection()
        self.variables = {}
        with self.collection:
            for name, value in variables.items():
                tensor = _tensor(value)
                self.variables[name] = ts.Variable(tensor, name=name, dtype=tensor.dtype)


class _Events(CheckpointSaverListener):
    """Writes down what a hook tells, and asks to stop after the save of one step."""

    def __init__(self, stop_at: int | None) -> None:
        self.events: list[str] = []
        self._stop_at = stop_at

    def begin(self) -> None:
        self.events.append("begin")

    def before_save(self, global_step: int) -> None:
        self.events.append(f"before_save {global_step}")

    def after_save(self, global_step: int) -> bool:
        self.events.append(f"after_save {global_step}")
        return global_step == self._stop_at

    def end(self, global_step: int) -> None:
        self.events.append(f"end {global_step}")


class Driver:
    """One scenario's models, savers and readers; `saver_defaults` are settings the scenario's savers get unless it says."""

    def __init__(self, clock: Clock, saver_defaults: dict[str, Any] | None = None) -> None:
        self.clock = clock
        self.saver_defaults = saver_defaults or {}
        self.models: dict[str, Model] = {}
        self.savers: dict[str, tuple[ts.Saver, Model]] = {}
        self.readers: dict[str, ts.CheckpointReader] = {}
        self.objects: dict[str, dict[str, Any]] = {}
        self.managers: dict[str, CheckpointManager] = {}

    # ---- variables

    def model(self, id: str, vars: dict[str, Any]) -> None:  # noqa: A002
        self.models[id] = Model(vars)

    def set(self, model: str, values: dict[str, Any]) -> None:
        for name, value in values.items():
            variable = self.models[model].variables[name]
            with torch.no_grad():
                variable.copy_(torch.tensor(value, dtype=variable.dtype))

    def get(self, model: str, names: list[str] | None = None) -> dict[str, Any]:
        variables = self.models[model].variables
        return {name: variables[name].detach().tolist() for name in sorted(names or variables)}

    def dtypes(self, model: str) -> dict[str, Any]:
        return {name: [_dtype(v.dtype), list(v.shape)] for name, v in self.models[model].variables.items()}

    # ---- savers

    def saver(
        self,
        id: str,  # noqa: A002
        model: str = "m",
        var_list: Any = None,
        var_list_form: str | None = None,
        **settings: Any,
    ) -> None:
        owner = self.models[model]
        with owner.collection:
            given = None if var_list is None else self._var_list(owner, var_list, var_list_form)
            self.savers[id] = ts.Saver(given, **{**self.saver_defaults, **settings}), owner

    def _var_list(self, model: Model, var_list: Any, form: str | None) -> Any:
        if isinstance(var_list, dict):
            return {key: model.variables[name] for key, name in var_list.items()}
        variables = [self._var_list(model, n, None) if isinstance(n, list) else model.variables[n] for n in var_list]
        forms: dict[str | None, Any] = {
            None: variables,
            "tuple": tuple(variables),
            "string": "a string",
            "none_element": [None],
            "array_element": [np.zeros(2)],
            "constant_tensor_element": [torch.zeros(2)],
            "generator": (variable for variable in variables),
            "dict_values_view": dict(enumerate(variables)).values(),
        }
        return variables[0] if form == "single" else forms[form]

    def saver_config(self, saver: str) -> dict[str, Any]:
        settings = self.savers[saver][0].settings
        return {
            "max_to_keep": settings["max_to_keep"],
            "keep_checkpoint_every_n_hours": settings["keep_checkpoint_every_n_hours"],
            "sharded": settings["max_shard_bytes"] is not None,
        }

    def saver_from_config(self, id: str, source: str, **settings: Any) -> None:  # noqa: A002
        saver, model = self.savers[source]
        with model.collection:
            self.savers[id] = ts.Saver(**{**settings, **saver.settings}), model

    def build(self, saver: str) -> None:
        built, model = self.savers[saver]
        with model.collection:
            built.build()

    def save(self, saver: str, path: Any, step: Any = None, **args: Any) -> str | None:
        built, model = self.savers[saver]
        match step:
            case {"var": name}:
                step = model.variables[name]
            case {"numpy": dtype, "value": value}:
                step = np.dtype(dtype).type(value)
        return built.save(_path(path), step, **args)

    def restore(self, saver: str, path: Any) -> None:
        self.savers[saver][0].restore(_path(path))

    def last_checkpoints(self, saver: str) -> list[str]:
        return self.savers[saver][0].last_checkpoints

    def set_last_checkpoints(self, saver: str, paths: list[str]) -> None:
        self.savers[saver][0].set_last_checkpoints(paths)

    def recover_last_checkpoints(self, saver: str, paths: list[str]) -> None:
        self.savers[saver][0].recover_last_checkpoints(paths)

    # ---- the state file

    def get_checkpoint_state(self, dir: Any, **args: Any) -> dict[str, Any] | None:  # noqa: A002
        state = ts.get_checkpoint_state(_path(dir), **args)
        return None if state is None else vars(state)

    def latest_checkpoint(self, dir: Any, **args: Any) -> str | None:  # noqa: A002
        return ts.latest_checkpoint(_path(dir), **args)

    def generate_checkpoint_state_proto(self, **args: Any) -> dict[str, Any]:
        return vars(ts.generate_checkpoint_state_proto(**args))

    def update_checkpoint_state(self, **args: Any) -> None:
        ts.update_checkpoint_state(**args)

    # ---- files

    def checkpoint_exists(self, prefix: str) -> bool:
        return ts.checkpoint_exists(prefix)

    def get_checkpoint_mtimes(self, prefixes: list[str]) -> list[float]:
        return ts.get_checkpoint_mtimes(prefixes)

    def remove_checkpoint(self, prefix: str) -> None:
        ts.remove_checkpoint(prefix)

    def checkpoint_files(self, prefix: str) -> list[str]:
        return [file for file in [f"{prefix}.safetensors"] if os.path.exists(file)]

    def checkpoints_on_disk(self, root: str) -> list[str]:
        names = (os.path.join(where, name) for where, _, files in os.walk(root) for name in files)
        return [name.removesuffix(".safetensors") for name in names if name.endswith(".safetensors")]

    # ---- reading

    def list_variables(self, path: Any) -> list[tuple[str, list[int]]]:
        return ts.list_variables(_path(path))

    def load_variable(self, path: Any, name: str) -> Any:
        return ts.load_variable(_path(path), name).tolist()

    def reader(self, id: str, path: Any) -> None:  # noqa: A002
        self.readers[id] = ts.load_checkpoint(_path(path))

    def reader_has_tensor(self, reader: str, name: str) -> bool:
        return self.readers[reader].has_tensor(name)

    def reader_get_tensor(self, reader: str, name: str) -> Any:
        return self.readers[reader].get_tensor(name).tolist()

    def reader_shape_map(self, reader: str) -> dict[str, list[int]]:
        return self.readers[reader].get_variable_to_shape_map()

    def reader_dtype_map(self, reader: str) -> dict[str, str]:
        return {key: _dtype(dtype) for key, dtype in self.readers[reader].get_variable_to_dtype_map().items()}

    def inspect(self, path: str, **args: Any) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            ts.print_tensors_in_checkpoint_file(path, **args)
        return printed.getvalue()

    # ---- filling a model from another's checkpoint

    def init_from_checkpoint(self, model: str, path: str, map: dict[str, Any]) -> dict[str, Any]:  # noqa: A002
        owner = self.models[model]
        targets = {
            key: owner.variables[target["var"]] if isinstance(target, dict) else target for key, target in map.items()
        }
        with owner.collection:
            ts.init_from_checkpoint(path, targets)
        return self.get(model)

    # ---- the loop

    def checkpoints_iterator(
        self,
        saver: str,
        dir: str,  # noqa: A002
        script: list[list[float]],
        timeout_fn: Any = None,
        **args: Any,
    ) -> dict[str, Any]:
        start, asked = self.clock.time(), []
        self.clock.hook = lambda: self._saves_that_are_due(saver, dir, script, self.clock.time() - start)
        self.clock.hook()

        def is_over() -> bool:
            asked.append(self.clock.time() - start)
            return timeout_fn == "true" or len(asked) == timeout_fn

        steps = checkpoints_iterator(dir, timeout_fn=is_over if timeout_fn is not None else None, **args)
        yields = [[self.clock.time() - start, path] for path in steps]
        self.clock.hook = None
        return {"yields": yields, "timeout_fn_calls": asked, "end": self.clock.time() - start}

    def _saves_that_are_due(self, saver: str, directory: str, script: list[list[float]], now: float) -> None:
        while script and script[0][0] <= now:
            self.save(saver, f"{directory}/m", int(script.pop(0)[1]))

    def train_loop(
        self,
        dir: str,  # noqa: A002
        steps: int,
        *,
        seconds_per_step: float = 0.0,
        resume: bool = False,
        stop_after_save_at: int | None = None,
        max_to_keep: int = 5,
        **hook_settings: Any,
    ) -> dict[str, Any]:
        """Train as under TF's MonitoredTrainingSession: x starts at 100 and grows by 1 a step."""
        x, step = torch.tensor(100.0), torch.tensor(0)
        saver = ts.Saver({"x": x, "global_step": step}, **{**self.saver_defaults, "max_to_keep": max_to_keep})
        listener = _Events(stop_after_save_at)
        hook = CheckpointSaverHook(dir, saver=saver, listeners=[listener], **hook_settings)
        hook.begin()
        state = ts.get_checkpoint_state(dir) if resume else None
        if state is not None:
            saver.restore(state.model_checkpoint_path)
            saver.recover_last_checkpoints(state.all_model_checkpoint_paths)
        start = [step.item(), x.item()]
        hook.after_create_session(step)
        for _ in range(steps):
            x += 1
            step += 1
            if hook.after_run(step):
                break
            self.clock.sleep(seconds_per_step)
        hook.end(step)
        return {
            "start": start,
            "steps_run": step.item() - start[0],
            "events": listener.events,
            "last_checkpoints": saver.last_checkpoints,
        }

    # ---- TF2's manager; its Checkpoint object is a dict of values here

    def checkpoint_object(self, id: str) -> None:  # noqa: A002
        self.objects[id] = {"value": torch.tensor(0.0), "step": torch.tensor(0), "save_counter": ts.Counter()}

    def checkpoint_object_set(self, id: str, value: float | None = None, step: int | None = None) -> None:  # noqa: A002
        for key, new in (("value", value), ("step", step)):
            if new is not None:
                self.objects[id][key].fill_(new)

    def checkpoint_object_get(self, id: str) -> dict[str, float]:  # noqa: A002
        values = self.objects[id]
        return {"value": values["value"].item(), "save_counter": int(values["save_counter"])}

    def manager(
        self,
        id: str,  # noqa: A002
        obj: str,
        dir: str,  # noqa: A002
        *,
        use_step_counter: bool = False,
        init_value: float | None = None,
        **args: Any,
    ) -> None:
        values = self.objects[obj]
        self.managers[id] = CheckpointManager(
            values,
            dir,
            step_counter=values["step"] if use_step_counter else None,
            init_fn=None if init_value is None else lambda: self.checkpoint_object_set(obj, value=init_value),
            **args,
        )

    def manager_save(self, manager: str, **args: Any) -> str | None:
        return self.managers[manager].save(**args)

    def manager_state(self, manager: str) -> dict[str, Any]:
        names = ("latest_checkpoint", "checkpoints", "directory", "checkpoint_interval")
        return {name: getattr(self.managers[manager], name) for name in names}

    def manager_restore_or_initialize(self, manager: str) -> str | None:
        return self.managers[manager].restore_or_initialize()

    def close(self) -> None:
        for reader in self.readers.values():
            reader.close()

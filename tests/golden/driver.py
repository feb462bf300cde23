"""The recorded operations in terms of torchsaver's public API."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
from typing import Any

import numpy as np
import torch

import torchsaver as ts


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


class Driver:
    """One scenario's models, savers and readers; `saver_defaults` are settings the scenario's savers get unless it says."""

    def __init__(self, saver_defaults: dict[str, Any] | None = None) -> None:
        self.saver_defaults = saver_defaults or {}
        self.models: dict[str, Model] = {}
        self.savers: dict[str, tuple[ts.Saver, Model]] = {}
        self.readers: dict[str, ts.CheckpointReader] = {}

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

    def close(self) -> None:
        for reader in self.readers.values():
            reader.close()

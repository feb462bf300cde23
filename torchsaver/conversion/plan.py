"""What becomes of each value: its new key, its new layout, or why it is left out; all that cannot be, at once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from torchsaver.conversion.source import Source, Value
from torchsaver.errors import ConversionError
from torchsaver.formats.json_text import is_unicode
from torchsaver.formats.manifest import Manifest
from torchsaver.formats.tensor_bytes import why_not_storable
from torchsaver.formats.tensorflow.data_types import BY_TORCH_NAME, STRING
from torchsaver.formats.tensorflow.stored_value import key_bytes
from torchsaver.variables.mapping.layouts import Transform, identity
from torchsaver.variables.mapping.rules_file import ConversionRules
from torchsaver.variables.var_list import RESERVED_KEY
from torchsaver.version import __version__

Format = Literal["safetensors", "tf"]


@dataclass(frozen=True)
class Row:
    """A value and what becomes of it.

    Attributes:
        name: Its name in the source.
        value: What is stored there.
        key: What it will be stored under.
        transform: How it is laid out otherwise.
        to_torch: Whether the transform leads from TensorFlow's layout to torch's, or back.
        aliases: Other names it will have.
    """

    name: str
    value: Value
    key: str
    transform: Transform
    to_torch: bool
    aliases: tuple[str, ...] = ()

    def read(self) -> Any:
        """Return the value as it will be stored."""
        return self._laid_out(self.value.read())

    @property
    def nbytes(self) -> int:
        """Size of what will be stored; 0 for strings, whose sizes are not known before they are read."""
        return 0 if self.value.dtype == STRING.name else self.meta().nbytes

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        shape = self.value.shape if self.value.dtype == STRING.name else self.meta().shape
        return {
            "from": self.name,
            "dtype": self.value.dtype,
            "from_shape": list(self.value.shape),
            "key": self.key,
            "shape": list(shape),
            "transform": None if self.transform == identity else str(self.transform),
            "bytes": self.nbytes,
            "aliases": list(self.aliases),
        }

    def meta(self) -> torch.Tensor:
        """Return a tensor without values that is what will be stored.

        Raises:
            ValueError: The transform is not for this shape.
        """
        dtype = getattr(torch, self.value.dtype)
        laid_out: torch.Tensor = self._laid_out(torch.empty(self.value.shape, dtype=dtype, device="meta"))
        return laid_out

    def _laid_out(self, value: Any) -> Any:
        if self.transform == identity:
            return value
        return self.transform.to_torch(value) if self.to_torch else self.transform.to_stored(value)


def plan_rows(source: Source, to: Format, rules: ConversionRules, left_out: dict[str, str]) -> list[Row]:
    """Return what becomes of each value; what is left out on the way is noted in `left_out`.

    Raises:
        ConversionError: As `convert_checkpoint`.
    """
    rows: list[Row] = []
    problems: list[str] = []
    if rules.layouts and source.is_tensorflow == (to == "tf"):
        both = "TensorFlow's" if to == "tf" else "torch's"
        problems.append(f"[[layout]] leads between TensorFlow's files and torch's, and both are {both}; leave it out")
    names: dict[str, str] = {}  # by what they come to
    for value in source.values:
        if value.dtype == STRING.name and to != "tf":
            left_out[value.key] = "strings, which safetensors cannot hold"
            continue
        for row in _rows_of(value, source, to, rules, left_out):
            problems += [f"{row.name!r} {reason}" for reason in _why_not(row, to)]
            for new in (row.key, *row.aliases):
                if new in names and names[new] != row.name:
                    problems.append(f"{names[new]!r} and {row.name!r} both come to {new!r}; rename one of them")
                names.setdefault(new, row.name)
            rows.append(row)
    if not rows and not problems:
        problems.append(f"{source.path!r} holds nothing that can be converted")
    if problems:
        raise ConversionError(list(dict.fromkeys(problems)))
    return rows


def _rows_of(
    value: Value, source: Source, to: Format, rules: ConversionRules, left_out: dict[str, str]
) -> Iterator[Row]:
    """Yield a row for a value, or one for each of its names if the format has no aliases."""
    names: dict[str, str] = {}  # by what they come to
    for name in (value.key, *value.aliases):
        new = rules.rename(name)
        if new is None:
            left_out[name] = "a rule leaves it out"
        else:
            names.setdefault(new, name)
    groups = [[new] for new in names] if to == "tf" else [list(names)] if names else []
    for key, *aliases in groups:
        in_tensorflow = names[key] if source.is_tensorflow else key
        transform = identity if value.dtype == STRING.name else rules.transform_of(in_tensorflow) or identity
        yield Row(names[key], value, key, transform, source.is_tensorflow, tuple(aliases))


def _why_not(row: Row, to: Format) -> Iterator[str]:
    """Yield why a format cannot hold a value, or not under its keys."""
    for key in (row.key, *row.aliases):
        has_key = key_bytes(key) is not None if to == "tf" else is_unicode(key) and key != RESERVED_KEY
        if not key or not has_key:
            yield f"comes to the key {key!r}, which the format cannot have; rename it"
    if row.value.problem:
        yield row.value.problem
    elif row.value.dtype != STRING.name and (reason := _why_no_tensor(row, to)) is not None:
        yield reason


def _why_no_tensor(row: Row, to: Format) -> str | None:
    if to == "tf" and row.value.dtype not in BY_TORCH_NAME:
        return f"is {row.value.dtype}, which TensorFlow's checkpoints do not have; leave it out"
    try:
        meta = row.meta()
    except ValueError as error:
        return f"cannot be laid out: {error}"
    # On the CPU with no elements, for all that depends on the dtype and rank alone.
    return why_not_storable(torch.empty([0] * meta.dim(), dtype=meta.dtype))


def plan_manifest(
    source: Source, rows: Sequence[Row], rules: ConversionRules | None, to: Format, left_out: dict[str, str]
) -> Manifest:
    """Return what goes with the tensors; for TensorFlow nothing does, and for renamed ones no object's state."""
    given = source.manifest
    extras = {"metadata": given.metadata is not None, "metrics": bool(given.metrics)}
    extras["global_step"] = given.global_step is not None
    if to == "tf":
        left_out.update({name: "TensorFlow's files have no place for it" for name, there in extras.items() if there})
    if given.objects and (to == "tf" or rules is not None):
        left_out.update({f"state of {name!r}": "only its tensors are converted" for name in given.objects})
    return Manifest(
        global_step=given.global_step,
        metadata=given.metadata,
        metrics=given.metrics,
        time=time.time(),
        versions={"torch": torch.__version__, "torchsaver": __version__},
        aliases={alias: row.key for row in rows for alias in row.aliases},
        complex128=frozenset(row.key for row in rows if row.value.dtype == "complex128"),
        objects=given.objects if rules is None else {},
    )

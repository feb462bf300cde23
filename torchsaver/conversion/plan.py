"""What becomes of each value: its new key, its new layout, or why it is left out; all that cannot be, at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from torchsaver.conversion.source import Source, Value
from torchsaver.errors import VarListError
from torchsaver.formats.json_text import is_unicode
from torchsaver.formats.manifest import Manifest
from torchsaver.formats.tensor_bytes import why_not_storable
from torchsaver.formats.tensorflow.data_types import BY_TORCH_NAME, STRING
from torchsaver.formats.tensorflow.stored_value import key_bytes
from torchsaver.variables.layouts import Transform, identity
from torchsaver.variables.rules_file import ConversionRules
from torchsaver.variables.var_list import RESERVED_KEY
from torchsaver.version import __version__

Format = Literal["safetensors", "tf"]


@dataclass(frozen=True)
class Row:
    """A value and what becomes of it.

    Attributes:
        value: What is stored.
        key: What it will be stored under.
        transform: How it is laid out otherwise.
        to_torch: Whether the transform leads from TensorFlow's layout to torch's, or back.
    """

    value: Value
    key: str
    transform: Transform
    to_torch: bool

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
            "from": self.value.key,
            "dtype": self.value.dtype,
            "from_shape": list(self.value.shape),
            "key": self.key,
            "shape": list(shape),
            "transform": None if self.transform == identity else str(self.transform),
            "bytes": self.nbytes,
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
        VarListError: As `convert_checkpoint`.
    """
    problems: list[str] = []
    rows: dict[str, Row] = {}
    aliases = source.manifest.aliases if to == "tf" else {}
    names: dict[str, list[str]] = {value.key: [value.key] for value in source.values}
    for alias, key in aliases.items():
        names.get(key, []).append(alias)
    for value in source.values:
        if value.dtype == STRING.name and to != "tf":
            left_out[value.key] = "strings, which safetensors cannot hold"
            continue
        for name in names[value.key]:
            new = rules.rename(name)
            if new is None:
                left_out[name] = "a rule leaves it out"
                continue
            in_tensorflow = name if source.is_tensorflow else new
            transform = identity if value.dtype == STRING.name else rules.transform_of(in_tensorflow) or identity
            row = Row(value, new, transform, to_torch=source.is_tensorflow)
            if (reason := _why_not(row, to)) is not None:
                problems.append(f"{name!r} {reason}")
            elif new in rows:
                problems.append(f"{name!r} and {rows[new].value.key!r} both come to {new!r}; rename one of them")
            rows.setdefault(new, row)
    if not rows and not problems:
        problems.append(f"{source.path!r} holds nothing that can be converted")
    if problems:
        raise VarListError(problems)
    return list(rows.values())


def _why_not(row: Row, to: Format) -> str | None:
    """Return why a format cannot hold a value under its key."""
    has_key = key_bytes(row.key) is not None if to == "tf" else is_unicode(row.key) and row.key != RESERVED_KEY
    if not row.key or not has_key:
        return f"comes to the key {row.key!r}, which the format cannot have; rename it"
    if row.value.dtype == STRING.name:
        return None
    if to == "tf" and row.value.dtype not in BY_TORCH_NAME:
        return f"is {row.value.dtype}, which TensorFlow's checkpoints do not have"
    try:
        meta = row.meta()
    except ValueError as error:
        return f"cannot be laid out: {error}"
    # On the CPU with no elements, for all that depends on the dtype and rank alone.
    return why_not_storable(torch.empty([0] * meta.dim(), dtype=meta.dtype)) if meta.dim() else None


def plan_manifest(
    source: Source, rows: Sequence[Row], rules: ConversionRules | None, to: Format, left_out: dict[str, str]
) -> Manifest:
    """Return what goes with the tensors; for TensorFlow nothing does, and for renamed ones no object's state."""
    given = source.manifest
    extras = {"metadata": given.metadata is not None, "global_step": given.global_step is not None}
    if to == "tf":
        left_out.update({name: "TensorFlow's files have no place for it" for name, there in extras.items() if there})
    if given.objects and (to == "tf" or rules is not None):
        left_out.update({f"state of {name!r}": "only its tensors are converted" for name in given.objects})
    rename = str if rules is None else rules.rename
    keys = {row.key for row in rows}
    aliases = {rename(alias): rename(key) for alias, key in given.aliases.items()}
    return replace(
        Manifest(global_step=given.global_step, metadata=given.metadata),
        time=time.time(),
        versions={"torch": torch.__version__, "torchsaver": __version__},
        aliases={alias: key for alias, key in aliases.items() if alias and key and key in keys and alias not in keys},
        complex128=frozenset(row.key for row in rows if row.value.dtype == "complex128"),
        objects=given.objects if rules is None else {},
    )

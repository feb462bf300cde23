"""A transfer worked out, as a value, and as the table that is read before anything changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torchsaver.errors import nearest_text
from torchsaver.variables.mapping.name_map import Link


@dataclass(frozen=True)
class TransferPlan:
    """What a transfer would do; its text is a table of it.

    Attributes:
        save_path: The checkpoint.
        links: Which value goes where.
        rows: For each link: key, shape as stored, transform, variable, its shapes.
        missing: {variable without a value: names of the checkpoint that look like the one it was looked for under}.
        unused: {key that goes nowhere: its shape}.
        alike: {such a key: variables without a value that were looked for under a name like it}.
        problems: {variable: why the value found for it does not fit}.
    """

    save_path: str
    links: tuple[Link, ...]
    rows: tuple[tuple[str, str, str, str, str], ...]
    missing: Mapping[str, tuple[str, ...]]
    unused: Mapping[str, list[int]]
    alike: Mapping[str, tuple[str, ...]]
    problems: Mapping[str, str]

    @property
    def is_complete(self) -> bool:
        """Whether every variable gets a value, and every value fits."""
        return not self.missing and not self.problems

    def __str__(self) -> str:
        widths = [max((len(row[column]) for row in self.rows), default=0) for column in range(4)]
        lines = [
            f"  {key:{widths[0]}}  {shape:{widths[1]}}  {transform:{widths[2]}}  -> {label:{widths[3]}}  {shapes}"
            for key, shape, transform, label, shapes in self.rows
        ]
        parts = [f"{len(self.rows)} values of {self.save_path!r}:", *lines]
        if self.problems:
            parts += [f"{len(self.problems)} do not fit:", *(f"  {name}: {why}" for name, why in self.problems.items())]
        if self.missing:
            parts.append(f"{len(self.missing)} variables without a value:")
            parts += [f"  {name}{nearest_text(names)}" for name, names in self.missing.items()]
        if self.unused:
            parts.append(f"{len(self.unused)} values that go nowhere:")
            parts += [f"  {key}  {shape}{nearest_text(self.alike.get(key, ()))}" for key, shape in self.unused.items()]
        return "\n".join(parts)

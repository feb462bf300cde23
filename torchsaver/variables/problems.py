"""All that is wrong with what a user gave, collected, so that one error says everything."""

from __future__ import annotations

from torchsaver.errors import VarListError, VarListTypeError


class Problems:
    """Collects what is wrong with a var_list and its values; raises once, with all of it."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._has_type_problem = False

    def add(self, line: str, *, wrong_type: bool = False) -> None:
        """Note a problem; `wrong_type` if it is one of a value's or key's type."""
        self._lines.append(line)
        self._has_type_problem |= wrong_type

    def raise_if_any(self) -> None:
        """Raise VarListError with every problem noted, VarListTypeError if one is of a type; nothing without any."""
        if self._lines:
            raise (VarListTypeError if self._has_type_problem else VarListError)(self._lines)

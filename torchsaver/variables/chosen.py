"""The variables a saver was given: read once, and looked up anew at each save and restore."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from torchsaver.errors import VarListError
from torchsaver.variables.objects import require_storable_objects
from torchsaver.variables.swapped import is_any_swapped, where_held
from torchsaver.variables.var_list import Entry, Slots, read_var_list, resolve, tensors_alone


class ChosenVariables:
    """What a saver saves.

    Args:
        var_list: As given to Saver.
        names_from: A module in which the tensors of a list are looked up for their names.
        allow_empty: Whether there may be none.
        defer: Whether they are read at `build`.

    Raises:
        ValueError: A var_list, although reading is deferred.
        VarListError: As `build`.
    """

    def __init__(self, var_list: Any, names_from: torch.nn.Module | None, *, allow_empty: bool, defer: bool) -> None:
        if defer and not (var_list is None or (isinstance(var_list, (dict, list, tuple, set)) and not var_list)):
            raise ValueError("defer_build takes the variables of the collection at build(); leave var_list out")
        self._var_list = var_list
        self._names_from = names_from
        self._allow_empty = allow_empty
        self._entries: list[Entry] | None = None
        self._tensors: dict[str, torch.Tensor] | None = None  # if there is nothing else, and nothing to look up
        if not defer:
            self.build()

    @property
    def is_built(self) -> bool:
        """Whether they have been read."""
        return self._entries is not None

    def build(self) -> None:
        """Read the var_list, and check what can be checked before the first save.

        Raises:
            VarListError: Keys or values that cannot be saved, all of them; or there is nothing.
        """
        entries = read_var_list(self._var_list, self._names_from)
        slots = resolve(entries)
        require_storable_objects(slots)  # what cannot be stored shows now, not at the first save
        self._require_something(slots)
        self._entries, self._tensors = entries, tensors_alone(entries)
        self._var_list = None  # a generator is used up

    def now(self) -> Slots:
        """Return the live tensors and objects.

        Raises:
            RuntimeError: They have not been read.
            VarListError: They cannot be told apart any more, or there is nothing any more.
        """
        if self._entries is None:
            raise RuntimeError("this Saver was made with defer_build=True; call build() first")
        slots = resolve(self._entries) if self._tensors is None else Slots(dict(self._tensors))
        self._require_something(slots)
        return _where_held_now(slots) if is_any_swapped() else slots

    def _require_something(self, slots: Slots) -> None:
        if not slots and not self._allow_empty:
            raise VarListError(["there is nothing to save; pass variables, or allow_empty=True"])


def _where_held_now(slots: Slots) -> Slots:
    """Return the slots with the tensors that hold their values now: inside of `swapped`, others."""
    layouts = {
        key: replace(layout, tensors=tuple(where_held(dict(enumerate(layout.tensors))).values()))
        for key, layout in slots.layouts.items()
    }
    return replace(slots, tensors=where_held(slots.tensors), layouts=layouts)

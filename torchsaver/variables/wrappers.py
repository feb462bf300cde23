"""Names without what wraps a module: `module.` of DataParallel, `_orig_mod.` of torch.compile, and their like.

Two ways to tell a wrapper. Of a live module the types are known, so that a submodule that a user called `module` keeps
its name. Of a stored name there is only the text, so it is used to find what is not there under its own name, and only
where a single one can be meant.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

_WRAPPERS = (DataParallel, DistributedDataParallel, AveragedModel)
_PUBLIC = "module"  # where these have what they wrap: a name that anyone may have given
_PRIVATE = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # names that no one else gives
_PARAMETRIZED = re.compile(r"(?:^|(?<=\.))parametrizations\.([^.]+)\.original(\d*)$")


def clean_names(module: torch.nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Return {name of a value in a live module: that name without wrappers}; unchanged if two would become one."""
    names = list(names)
    public, has_private = set(), False
    for path, part in module.named_modules(remove_duplicate=False):
        if isinstance(part, _WRAPPERS):
            public.add(".".join([*(each for each in path.split(".") if each and each not in _PRIVATE), _PUBLIC]))
        has_private = has_private or not _PRIVATE.isdisjoint(part._modules)
    if not public and not has_private:
        return dict(zip(names, names, strict=True))
    clean = {name: _without(without_private(name), public) for name in names}
    return clean if len(set(clean.values())) == len(names) else dict(zip(names, names, strict=True))


def _without(name: str, wrapped: set[str]) -> str:
    """Return a name without those components whose paths are `wrapped`."""
    *path, last = name.split(".")
    kept = [part for number, part in enumerate(path) if ".".join(path[: number + 1]) not in wrapped]
    return ".".join([*kept, last])


def owner_of_extra_state(module: torch.nn.Module, path: str) -> torch.nn.Module:
    """Return the submodule whose get_extra_state() state_dict() gives under `path`, which may lack private wrappers."""
    for part in filter(None, path.split(".")):
        while part not in module._modules and (inside := _inside(module)) is not None:
            module = inside
        module = module.get_submodule(part)
    while type(module).get_extra_state is torch.nn.Module.get_extra_state and (inside := _inside(module)) is not None:
        module = inside
    return module


def _inside(module: torch.nn.Module) -> torch.nn.Module | None:
    """Return what a private wrapper wraps, None of any other module."""
    return next((part for name, part in module._modules.items() if name in _PRIVATE), None)


def without_private(name: str) -> str:
    """Return a name without `_orig_mod.` and others that only wrappers give."""
    if "_mod" not in name:  # quick for nearly all: it is part of each of them
        return name
    *path, last = name.split(".")
    return ".".join([*(part for part in path if part not in _PRIVATE), last])


def plain_name(name: str) -> str:
    """Return a name without all that may be of a wrapper, going by the text alone."""
    if _PUBLIC not in name and "_mod" not in name:
        return name
    *path, last = name.split(".")
    return ".".join([*(part for part in path if part != _PUBLIC and part not in _PRIVATE), last])


def without_parametrization(name: str) -> str:
    """Return a parameter's name as if it were not parametrized: "fc.weight" of "fc.parametrizations.weight.original".

    Where the value is made of several, as by weight_norm, none of them is the weight, and each keeps a name of its own:
    "fc.weight.original0".
    """
    return _PARAMETRIZED.sub(lambda found: found[1] + (f".original{found[2]}" if found[2] else ""), name)


def plain_parameter_name(name: str) -> str:
    """Return a parameter's name without wrappers and parametrizations, going by the text alone."""
    return without_parametrization(plain_name(name))


def match_plain(
    wanted: Iterable[str], stored: Iterable[str], plain: Callable[[str], str] = plain_name
) -> dict[str, str]:
    """Return {wanted name: stored name} for those that differ in wrappers only, where one of each kind is all there is.

    Args:
        wanted: Names that are not stored as they are.
        stored: Names that no one else wants.
        plain: What makes two names alike.
    """
    sides: tuple[dict[str, list[str]], dict[str, list[str]]] = (defaultdict(list), defaultdict(list))
    for side, names in zip(sides, (wanted, stored), strict=True):
        for name in names:
            side[plain(name)].append(name)
    by_wanted, by_stored = sides
    alike = ((names, by_stored.get(name, [])) for name, names in by_wanted.items())
    return {ours[0]: theirs[0] for ours, theirs in alike if len(ours) == len(theirs) == 1}


def match_parameters(wanted: Iterable[str], stored: Iterable[str]) -> dict[str, str]:
    """Return {wanted name of a parameter: its stored name}: the very name, or one that is alike without wrappers."""
    wanted, stored = list(wanted), set(stored)
    found = {name: name for name in wanted if name in stored}
    if len(found) < len(wanted):
        absent = [name for name in wanted if name not in found]
        found |= match_plain(absent, stored.difference(found), plain_parameter_name)
    return found

"""A restore plan matches slots with what is stored, or says everything that does not fit; it touches nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import torchsaver as ts
from torchsaver.variables.optimizers.named_optimizer import NamedOptimizer
from torchsaver.variables.restore_plan import plan_restore
from torchsaver.variables.var_list import Slots


@dataclass(frozen=True)
class Spec:
    """A stored tensor's dtype and shape."""

    shape: tuple[int, ...] = (2,)
    dtype: torch.dtype = torch.float32

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


@dataclass
class Shelf:
    """A checkpoint that is only a lookup: nothing could be read or touched."""

    tensors: dict[str, Spec]
    aliases: dict[str, str] = field(default_factory=dict)
    object_trees: dict[str, Any] = field(default_factory=dict)
    save_path: str = "run/m-1"

    def keys(self) -> list[str]:
        return sorted(self.tensors)

    def find(self, key: str) -> tuple[str, Spec] | None:
        stored_key = self.aliases.get(key, key)
        return (stored_key, self.tensors[stored_key]) if stored_key in self.tensors else None


class Untouchable:
    """An object that must neither be read nor loaded while planning."""

    def state_dict(self) -> Any:
        raise AssertionError

    def load_state_dict(self, state: Any) -> None:
        raise AssertionError


def _slots(*keys: str, **aliases: str) -> Slots:
    return Slots({key: torch.zeros(2) for key in keys}, aliases)


def test_plan_takes_each_slot_from_its_key_and_names_what_nobody_asked_for() -> None:
    slots = _slots("a", "b")
    slots.objects["opt"] = Untouchable()
    trees = {"opt": {"dict": {"x": {"tensor": "opt.x"}}}, "other": None}
    shelf = Shelf({key: Spec() for key in ("b", "a", "opt.x", "z", "y")}, object_trees=trees)
    plan = plan_restore(slots, shelf, strict=True, reshape=False)
    assert plan.sources == {"a": "a", "b": "b"}
    assert plan.objects == {"opt": trees["opt"]}
    assert (plan.missing, plan.unused, plan.ties, plan.aliases) == ([], ["other", "y", "z"], [], {})


WRONG = {
    "missing": torch.zeros(2),
    "shape": torch.zeros(3, 2),
    "count": torch.zeros(5),
    "dtype": torch.zeros(2, dtype=torch.int64),
    "expanded": torch.zeros(1).expand(2),
    "meta": torch.zeros(2, device="meta"),
}
STORED = {
    "shape": Spec((2, 3)),
    "count": Spec((4,)),
    "dtype": Spec(),
    "expanded": Spec(),
    "meta": Spec(),
    "missin": Spec(),
    "good": Spec(),
}


def test_plan_with_everything_wrong_tells_all_of_it_in_one_error() -> None:
    slots = Slots({**WRONG, "good": torch.zeros(2)}, {}, {"opt": Untouchable()})
    with pytest.raises(ts.MismatchError) as raised:
        plan_restore(slots, Shelf(STORED), strict=True, reshape=False)
    error = raised.value
    assert error.save_path == "run/m-1"
    assert error.missing == ("missing", "opt")
    assert error.shapes == (("shape", [2, 3], [3, 2]), ("count", [4], [5]))
    assert error.dtypes == (("dtype", "float32", "int64"),)
    assert [key for key, _ in error.targets] == ["expanded", "meta"]
    assert error.nearest["missing"] == ("missin",)
    assert all(key in str(error) for key in WRONG)
    assert "good" not in str(error)


def test_plan_with_reshape_takes_another_shape_of_as_many_elements_and_nothing_else() -> None:
    with pytest.raises(ts.MismatchError) as raised:
        plan_restore(Slots(dict(WRONG)), Shelf(STORED), strict=True, reshape=True)
    assert raised.value.shapes == (("count", [4], [5]),)
    assert raised.value.dtypes
    plan = plan_restore(Slots({"shape": torch.zeros(3, 2)}), Shelf(STORED), strict=True, reshape=True)
    assert plan.sources == {"shape": "shape"}


@pytest.mark.parametrize(
    ("stored", "wanted", "fits"),
    [((), (1,), True), ((1,), (), True), ((0, 3), (5, 0), True), ((0,), (), False), ((2, 3), (7,), False)],
)
def test_plan_with_and_without_reshape_judges_a_shape_by_its_element_count(
    stored: tuple[int, ...], wanted: tuple[int, ...], fits: bool
) -> None:
    slots, shelf = Slots({"w": torch.zeros(wanted)}), Shelf({"w": Spec(stored)})
    for reshape in (False, True):
        if reshape and fits:
            assert plan_restore(slots, shelf, strict=True, reshape=True).sources == {"w": "w"}
        else:
            with pytest.raises(ts.MismatchError, match="shape"):
                plan_restore(slots, shelf, strict=True, reshape=reshape)


def test_plan_not_strict_skips_what_is_missing_and_still_refuses_what_does_not_fit() -> None:
    slots = _slots("a", "gone", also_gone="gone")
    slots.objects["opt"] = Untouchable()
    plan = plan_restore(slots, Shelf({"a": Spec()}), strict=False, reshape=False)
    assert (plan.sources, plan.missing, plan.aliases) == ({"a": "a"}, ["gone", "opt"], {})
    with pytest.raises(ts.MismatchError) as raised:
        plan_restore(slots, Shelf({"a": Spec((3,))}), strict=False, reshape=False)
    assert (raised.value.missing, len(raised.value.shapes)) == ((), 1)
    assert "strict" not in str(raised.value)


@pytest.mark.parametrize(
    ("stored", "aliases", "source", "unused"),
    [
        (["a"], {}, "a", []),  # an untied checkpoint with the first name alone
        (["b"], {}, "b", []),  # ... with the other name alone
        (["a"], {"b": "a"}, "a", []),
        (["b"], {"a": "b"}, "b", []),  # tied the other way round
        (["c"], {"a": "c", "b": "c"}, "c", []),
        (["c", "d"], {"b": "c"}, "c", ["d"]),
    ],
)
def test_plan_of_tied_tensors_finds_the_value_under_any_of_their_names(
    stored: list[str], aliases: dict[str, str], source: str, unused: list[str]
) -> None:
    plan = plan_restore(_slots("a", b="a"), Shelf({k: Spec() for k in stored}, aliases), strict=True, reshape=False)
    assert (plan.sources, plan.aliases, plan.ties, plan.unused) == ({"a": source}, {"b": "a"}, [], unused)


def test_plan_of_untied_slots_reads_one_stored_value_for_both() -> None:
    plan = plan_restore(_slots("a", "b"), Shelf({"a": Spec()}, {"b": "a"}), strict=True, reshape=False)
    assert (plan.sources, plan.unused) == ({"a": "a", "b": "a"}, [])


def test_plan_of_tied_slots_stored_apart_notes_the_tie() -> None:
    shelf = Shelf({key: Spec() for key in "abc"})
    plan = plan_restore(_slots("a", b="a", c="a"), shelf, strict=True, reshape=False)
    assert plan.sources == {"a": "a"}
    assert plan.ties == [("a", "b", "a", "b"), ("a", "c", "a", "c")]
    assert plan.unused == []


class Tied(torch.nn.Module):
    """Two layers, with one weight or two."""

    def __init__(self, *, tied: bool, value: float = 0.0, other: float | None = None) -> None:
        super().__init__()
        self.one, self.two = (torch.nn.Linear(1, 1, bias=False) for _ in range(2))
        with torch.no_grad():
            self.one.weight.fill_(value)
            self.two.weight.fill_(value if other is None else other)
        if tied:
            self.two.weight = self.one.weight


@pytest.mark.parametrize("tied_saved", [True, False])
@pytest.mark.parametrize("tied_now", [True, False])
def test_restore_of_tied_and_untied_models_into_each_other_gives_both_the_value(
    tmp_path: Path, tied_saved: bool, tied_now: bool
) -> None:
    prefix = ts.Saver(Tied(tied=tied_saved, value=3.0)).save(tmp_path / "m")
    model = Tied(tied=tied_now)
    report = ts.Saver(model).restore(prefix)
    assert (model.one.weight.item(), model.two.weight.item()) == (3.0, 3.0)
    assert (model.one.weight is model.two.weight) == tied_now
    assert report.aliases == ({"two.weight": "one.weight"} if tied_now else {})
    assert report.unused == ()


def test_restore_of_two_values_into_one_tied_tensor_is_a_mismatch_and_changes_nothing(tmp_path: Path) -> None:
    prefix = ts.Saver(Tied(tied=False, value=1.0, other=2.0)).save(tmp_path / "m")
    model = Tied(tied=True, value=7.0)
    with pytest.raises(ts.MismatchError, match=r"two\.weight: is tied to 'one.weight'"):
        ts.Saver(model).restore(prefix)
    assert model.one.weight.item() == 7.0


def test_restore_with_one_slot_wrong_changes_no_tensor(tmp_path: Path) -> None:
    prefix = ts.Saver({"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(3)}).save(tmp_path / "m")
    for wrong in (torch.zeros(5), torch.zeros(3, dtype=torch.float64), torch.zeros(1).expand(3)):
        slots = {"a": torch.zeros(2), "b": torch.zeros(2), "c": wrong}
        with pytest.raises(ts.MismatchError):
            ts.Saver(slots).restore(prefix)
        assert not any(tensor.any() for tensor in slots.values())


@pytest.mark.parametrize(
    ("report", "parts"),
    [
        (ts.RestoreReport(), ["RestoreReport"]),
        (
            ts.RestoreReport(
                "run/m-1", restored=("a", "b"), missing=tuple("cdefgh"), unused=("z",), aliases={"y": "a"}
            ),
            ["run/m-1", "6 missing: c, d, e, f, g, ...", "1 unused: z", "1 tied: y"],
        ),
    ],
)
def test_report_shown_says_what_was_skipped(report: ts.RestoreReport, parts: list[str]) -> None:
    assert [part for part in parts if part not in repr(report)] == []


# ---- names that differ in wrappers only


def test_plan_finds_through_wrappers_what_is_not_stored_under_its_own_name() -> None:
    slots, shelf = (
        _slots("fc.w", "own.module.w", "plain"),
        Shelf({"module.fc.w": Spec(), "own.w": Spec(), "plain": Spec()}),
    )
    plan = plan_restore(slots, shelf, strict=True, reshape=False)
    assert plan.sources == {"fc.w": "module.fc.w", "own.module.w": "own.w", "plain": "plain"}
    assert plan.unused == []
    with pytest.raises(ts.MismatchError) as raised:
        plan_restore(slots, shelf, strict=True, reshape=False, through_wrappers=False)
    assert raised.value.missing == ("fc.w", "own.module.w")


def test_plan_through_wrappers_still_judges_shapes_and_dtypes_by_the_slots_key() -> None:
    slots = _slots("a", "b")
    shelf = Shelf({"module.a": Spec((3,)), "module.b": Spec(dtype=torch.int64)})
    with pytest.raises(ts.MismatchError) as raised:
        plan_restore(slots, shelf, strict=True, reshape=False)
    assert (raised.value.shapes[0][0], raised.value.dtypes[0][0]) == ("a", "b")


def test_plan_finds_objects_through_wrappers_and_takes_them_for_used() -> None:
    slots = Slots(objects={"m._extra_state": Untouchable()})
    shelf = Shelf({}, object_trees={"m.module._extra_state": None, "other": None})
    plan = plan_restore(slots, shelf, strict=True, reshape=False)
    assert (plan.objects, plan.unused) == ({"m._extra_state": None}, ["other"])


def test_plan_with_every_key_found_asks_for_no_list_of_keys() -> None:
    class NoList(Shelf):
        listed = 0

        def keys(self) -> list[str]:
            self.listed += 1
            return super().keys()

    shelf = NoList({"a": Spec()}, aliases={"b": "a"})
    plan_restore(_slots("a", tied="a"), shelf, strict=True, reshape=False)
    assert shelf.listed == 1  # for those that nobody asked for


# ---- optimizers


def _optimizer_tree(*names: str) -> dict[str, Any]:
    states = [[name, {"dict": {"m": {"tensor": f"o.{name}.m"}}}] for name in names]
    groups = [{"items": [{"tuple": ["lr", 0.1]}, {"tuple": ["params", list(names)]}]}]
    return {"optimizer": {"parameters": states, "others": {"dict": {}}, "param_groups": groups}}


def _optimizer_slots(*names: str) -> Slots:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in names]
    return Slots(objects={"o": NamedOptimizer(torch.optim.SGD(parameters, lr=1.0), names)})


def test_plan_names_parameters_an_optimizer_state_lacks_and_leaves_out_those_it_has_too_many() -> None:
    tree = _optimizer_tree("a", "module.b", "gone")
    shelf = Shelf({f"o.{name}.m": Spec() for name in ("a", "module.b", "gone")}, object_trees={"o": tree})
    slots = _optimizer_slots("a", "b", "new")
    with pytest.raises(ts.MismatchError) as raised:
        plan_restore(slots, shelf, strict=True, reshape=False)
    assert raised.value.missing == ("o.new",)
    plan = plan_restore(slots, shelf, strict=False, reshape=False)
    assert (plan.missing, plan.unused) == (["o.new"], ["o.gone.m"])
    assert [name for name, _ in plan.objects["o"]["optimizer"]["parameters"]] == ["a", "module.b"]
    assert len(tree["optimizer"]["parameters"]) == 3


def test_plan_of_an_optimizer_whose_tensor_is_gone_is_corrupt_also_if_it_is_not_wanted() -> None:
    shelf = Shelf({"o.a.m": Spec()}, object_trees={"o": _optimizer_tree("a", "gone")})
    with pytest.raises(ts.CorruptCheckpointError, match=r"o\.gone\.m"):
        plan_restore(_optimizer_slots("a"), shelf, strict=False, reshape=False)


def test_plan_slot_that_is_there_by_its_alias_is_not_looked_for_through_wrappers() -> None:
    shelf = Shelf({"b": Spec(), "module.a": Spec()})
    plan = plan_restore(_slots("a", b="a"), shelf, strict=True, reshape=False)
    assert (plan.sources, plan.ties, plan.unused) == ({"a": "b"}, [], ["module.a"])

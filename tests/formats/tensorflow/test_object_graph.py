"""Graphs of objects: every name of TensorFlow's own finds its key, and no graph, damaged or vast, does any harm."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterable
from pathlib import Path

import corpus
import pytest
from corpus import CORPUS, CORRUPT
from hypothesis import given
from hypothesis import strategies as st

from torchsaver.formats.regular_file import RegularFile
from torchsaver.formats.tensorflow.object_graph import OBJECT_GRAPH_KEY, ObjectGraph, ObjectValue, parse_object_graph
from torchsaver.formats.tensorflow.sstable import read_table
from torchsaver.formats.tensorflow.wire import Schema, format_varint, parse_message, read_varint

CASES = [case for case in corpus.CASES if corpus.expected(case)["kind"] == "object"]
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
NAMES = st.text(st.sampled_from("ab._/Sé"), min_size=1, max_size=4)
EDITS = st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=3), st.integers(0, 3))  # where, new, removed


@functools.cache
def _message(prefix: Path) -> bytes:
    """Return the one element of the string tensor that is the graph: its length, a checksum, its bytes."""
    table = dict(read_table(RegularFile(f"{prefix}.index")))
    shards = parse_message(table[b""], Schema({1: ("shards", "int64")}))["shards"]
    schema = Schema({3: ("shard", "int64"), 4: ("offset", "int64"), 5: ("nbytes", "int64")})
    shard, offset, nbytes = parse_message(table[OBJECT_GRAPH_KEY.encode()], schema).values()
    data = Path(f"{prefix}.data-{shard:05d}-of-{shards:05d}").read_bytes()[offset : offset + nbytes]
    nbytes, position = read_varint(data, 0)
    assert len(data) == position + 4 + nbytes
    return data[position + 4 :]


def _case(case: str) -> bytes:
    return _message(CORPUS / case / corpus.expected(case)["prefix"])


def _graph(case: str) -> ObjectGraph:
    return parse_object_graph(_case(case))


def _field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return format_varint(number << 3) + format_varint(value & (1 << 64) - 1)
    data = value if isinstance(value, bytes) else value.encode()
    return format_varint(number << 3 | 2) + format_varint(len(data)) + data


def _node(children: Iterable[tuple] = (), values: Iterable[tuple] = (), slots: Iterable[tuple] = ()) -> bytes:
    """Return a node with (node, name), (attribute, full name, key) and (variable, name, slot variable)."""
    messages = [(number, each) for number, kind in enumerate((children, values, slots), 1) for each in kind]
    return b"".join(_field(n, b"".join(_field(i, value) for i, value in enumerate(each, 1))) for n, each in messages)


def _built(*nodes: bytes) -> bytes:
    return b"".join(_field(1, node) for node in nodes)


def _variable(key: str, full_name: str = "") -> bytes:
    return _node(values=[("VARIABLE_VALUE", full_name, key)])


@pytest.mark.parametrize("case", CASES)
def test_values_of_tensorflow_have_the_recorded_keys_names_and_paths_in_order(case: str) -> None:
    wanted = corpus.expected(case)["object_graph"]["keys"]
    assert list(_graph(case).keys.values()) == [ObjectValue(key, **fields) for key, fields in wanted.items()]


@pytest.mark.parametrize("case", CASES)
def test_slot_variables_of_tensorflow_are_as_recorded_and_name_their_keys(case: str) -> None:
    slots = _graph(case).slots
    found = [{"optimizer": s.optimizer, "variable": s.variable, "slot": s.slot_name, "keys": [s.key]} for s in slots]
    assert found == corpus.expected(case)["object_graph"]["slots"]
    for slot in slots:
        assert slot.keys == (slot.key,)
        assert slot.variable_key == f"{slot.variable}{SUFFIX}"


@pytest.mark.parametrize("case", CASES)
def test_every_value_of_tensorflow_is_found_by_its_key_and_its_path(case: str) -> None:
    graph = _graph(case)
    for key, value in graph.keys.items():
        assert graph.find(key) == key
        assert graph.find(key.removesuffix(SUFFIX)) == key
        if value.path is not None:
            assert graph.find(value.path) == key
            assert graph.find(f"{value.path}/.ATTRIBUTES/{value.attribute}") == key


@pytest.mark.parametrize("case", CASES)
def test_full_name_is_found_if_one_value_alone_has_it(case: str) -> None:
    graph = _graph(case)
    full_names = [value.full_name for value in graph.keys.values()]
    for key, value in graph.keys.items():
        is_unique = value.full_name and full_names.count(value.full_name) == 1
        assert graph.find(value.full_name) == (key if is_unique else None)


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith(("keras", "savedmodel_keras"))])
def test_weights_of_keras_are_found_by_the_names_of_their_layers(case: str) -> None:
    graph = _graph(case)
    for weight in corpus.expected(case)["keras_weights"]:
        assert graph.find(weight["name"]) == weight["key"]


def test_weight_of_keras_3_is_found_through_its_layer_though_its_key_is_below_the_optimizer() -> None:
    graph = _graph("keras3_adam_object")
    key = f"optimizer/_trainable_variables/0{SUFFIX}"
    for name in ("model/_operations/1/_kernel", "model/_operations/1/kernel", "model/operations/1/kernel"):
        assert graph.find(name) == graph.find(name + SUFFIX) == key


def test_moments_of_new_optimizers_are_found_beside_their_variables() -> None:
    graph = _graph("keras3_adam_object")
    assert {"_momentums", "_velocities", "_trainable_variables"} <= set(graph.child_names("optimizer"))
    numbers = graph.child_names("optimizer/_momentums")
    assert numbers == graph.child_names("optimizer/_trainable_variables") == [str(i) for i in range(11)]
    for number in numbers:
        lists = ("_trainable_variables", "_momentums", "_velocities")
        variable, *moments = (graph.keys[graph.find(f"optimizer/{of}/{number}") or ""].full_name for of in lists)
        stem = f"adam/{variable.replace('/', '_')}"
        assert moments == [f"{stem}_momentum", f"{stem}_velocity"]


def test_child_names_are_escaped_and_none_of_what_is_not_there() -> None:
    graph = _graph("module_object")
    assert graph.child_names() == ["rng", "root_obj", "step", "save_counter"]
    assert graph.child_names("root_obj/by_name") == ["plain", "with.Sslash", "with..dot"]
    assert graph.child_names("root_obj/w") == graph.child_names("no/such") == []


def test_module_is_walked_by_any_way_and_in_either_spelling_to_one_value_or_none() -> None:
    find = _graph("module_object").find
    assert find("root_obj/alias") == f"root_obj/w{SUFFIX}"
    assert find("root_obj/nested/again") == f"root_obj/stack/0{SUFFIX}"
    for name in ("with/slash", "with.Sslash"):
        assert find(f"root_obj/by_name/{name}{SUFFIX}") == f"root_obj/by_name/with.Sslash{SUFFIX}"
    for name in ("with.dot", "with..dot"):
        assert find(f"root_obj/by_name/{name}") == f"root_obj/by_name/with..dot{SUFFIX}"
    for name in ("root_obj", "root_obj/by_name/with", "dup", "no/such", "/step", "step/", "rng//_state_var"):
        assert find(name) is None


def test_readable_path_to_two_objects_is_ambiguous_and_the_escaped_ones_are_not() -> None:
    root = _node([(1, "a"), (2, "a/b"), (3, "a.b")])
    graph = parse_object_graph(_built(root, _node([(4, "b/c")]), _node([(5, "c")]), *map(_variable, "345")))
    assert graph.find("a/b/c") is None
    assert (graph.find("a/b.Sc"), graph.find("a.Sb/c"), graph.find("a.b"), graph.find("a..b")) == ("4", "5", "3", "3")
    assert graph.child_names("a/b") == ["c"]


def test_escaped_spelling_goes_before_the_readable_one_and_may_be_mixed_with_it() -> None:
    root = _node([(1, "a.b"), (2, "a..b"), (3, "..."), (4, ".."), (5, "a/b")])
    graph = parse_object_graph(_built(root, *map(_variable, "1234"), _node([(6, "c.d")]), _variable("6")))
    assert [graph.find(name) for name in ("a..b", "a....b", "...", "a/b/c..d")] == ["1", "2", "3", "6"]


def test_path_and_full_name_go_before_a_private_name() -> None:
    root = _node([(1, "_x"), (2, "_y"), (3, "y"), (4, "_z"), (5, "other")])
    graph = parse_object_graph(_built(root, *map(_variable, "1234"), _variable("5", "z")))
    assert [graph.find(name) for name in ("x", "y", "z", "_z")] == ["1", "3", "5", "4"]


def test_object_with_several_values_has_its_variable_value_or_needs_an_attribute() -> None:
    table = _node(values=[("table-keys", "", "k"), ("table-values", "", "v")])
    both = _node(values=[("a.b", "", "s"), ("VARIABLE_VALUE", "", "w")])
    graph = parse_object_graph(_built(_node([(1, "t"), (2, "both")]), table, both))
    assert graph.find("t") is None
    assert graph.find("t/.ATTRIBUTES/table-values") == "v"
    assert graph.find("both") == "w"
    assert graph.find("both/.ATTRIBUTES/a..b") == graph.find("both/.ATTRIBUTES/a.b") == "s"


def test_value_of_the_root_has_an_empty_path_and_one_without_a_key_is_not_there() -> None:
    graph = parse_object_graph(_built(_node(values=[("VARIABLE_VALUE", "w", "key"), ("x", "", "")])))
    assert graph.keys == {"key": ObjectValue("key", "VARIABLE_VALUE", "w", "")}
    assert graph.find("") == graph.find(SUFFIX) == graph.find("w") == "key"


def test_of_children_with_one_name_and_of_values_with_one_key_the_first_counts() -> None:
    graph = parse_object_graph(_built(_node([(1, "a"), (2, "a")]), _variable("k", "one"), _variable("k", "two")))
    assert graph.keys == {"k": ObjectValue("k", "VARIABLE_VALUE", "one", "a")}
    assert graph.find("two") == "k"


def test_slots_of_what_no_path_leads_to_have_none() -> None:
    optimizer = _node(slots=[(2, "m", 3), (3, "v", 0)])
    first, second = parse_object_graph(_built(_node(), optimizer, _variable("w"), _variable("w/m"))).slots
    assert first == ("m", None, None, "w", "w/m", ("w/m",))
    assert second == ("v", None, None, "w/m", None, ())


@pytest.mark.parametrize("damage", ["child_negative", "child_out_of_range", "name_not_utf8", "truncated"])
def test_damaged_graph_of_the_corpus_is_refused_with_its_reason(damage: str) -> None:
    with pytest.raises(ValueError, match=r"refers to node|'utf-8' codec|ends beyond its message"):
        parse_object_graph(_message(CORRUPT / f"graph_{damage}" / "m"))


def test_sound_graphs_among_the_damaged_checkpoints_are_read() -> None:
    empty = parse_object_graph(_message(CORRUPT / "graph_empty" / "m"))
    assert (empty.keys, empty.slots, empty.child_names(), empty.find("a"), empty.find("")) == ({}, [], [], None, None)
    assert parse_object_graph(_message(CORRUPT / "graph_key_missing" / "m")).keys  # the bundle lacks one of them


@pytest.mark.parametrize("number", [1, -1, 2**32, 2**31])  # 2**32 would be the root in 32 bits
def test_reference_to_no_node_is_refused_with_the_node_that_has_it(number: int) -> None:
    for node in (_node([(number, "a")]), _node(slots=[(0, "m", number)]), _node(slots=[(number, "m", 0)])):
        with pytest.raises(ValueError, match="node 0: it refers to node"):
            parse_object_graph(_built(node))


# A name that is not UTF-8 in each field that has one, and a name that is a number.
@pytest.mark.parametrize("damaged", ["0a031201ff", "12030a01ff", "12031201ff", "12031a01ff", "1a031201ff", "1a021007"])
def test_damage_within_a_node_is_refused_with_its_number(damaged: str) -> None:
    with pytest.raises(ValueError, match="object graph, node 1: ") as caught:
        parse_object_graph(_built(b"", bytes.fromhex(damaged)))
    assert type(caught.value) is ValueError


def test_graph_cut_anywhere_is_refused_or_has_fewer_nodes() -> None:
    whole, wanted = _case("module_object"), _graph("module_object").keys
    for length in range(len(whole)):
        with contextlib.suppress(ValueError):
            assert parse_object_graph(whole[:length]).keys.items() <= wanted.items()


def test_fifty_nodes_all_connected_to_each_other_are_searched_in_no_time() -> None:
    names = ["x/x", "x/x/x", *map(str, range(48))]
    nodes = [_node([((i * 7 + j + 1) % 50, names[j]) for j in range(50)], [("", "", f"key{i}")]) for i in range(50)]
    started = time.process_time()
    graph = parse_object_graph(_built(*nodes))
    assert all(value.path is not None and value.path.count("/") < 3 for value in graph.keys.values())
    assert graph.find("/".join(["47"] * 500)) in graph.keys
    assert graph.find("/".join(["x"] * 500)) is None  # it may end at any of them
    assert time.process_time() - started < 1


def test_object_is_found_by_two_ways_at_once_and_through_a_cycle_at_any_depth() -> None:
    graph = parse_object_graph(_built(_node([(0, "self"), (1, "a"), (2, "a/b")]), _node([(2, "b")]), _variable("key")))
    assert graph.find("a/b") == graph.find("self/self/self/a/b") == "key"
    assert graph.keys["key"].path == "a/b"
    assert graph.find("") is None  # though it alone has no full name


def _chain(length: int, keys: dict[int, str]) -> bytes:
    """Return a graph in which each node is the child of the one before."""
    children = [[(number + 1, "a")] for number in range(length - 1)] + [[]]
    return _built(*(_node(each, [("", "", keys[i])] if i in keys else []) for i, each in enumerate(children)))


def test_chain_deeper_than_any_stack_is_walked_and_refused_if_its_paths_outgrow_it_by_far() -> None:
    graph = parse_object_graph(_chain(20_000, {19_999: "key"}))
    assert graph.keys["key"].path == "/".join(["a"] * 19_999)
    assert graph.find("/".join(["a"] * 19_999)) == "key"
    with pytest.raises(ValueError, match="far longer than itself"):
        parse_object_graph(_chain(5000, {number: str(number) for number in range(5000)}))


def test_slots_of_one_variable_share_the_names_of_its_many_values() -> None:
    variable = _node(values=[("part", "", str(number)) for number in range(2000)])
    slots = parse_object_graph(_built(_node(slots=[(1, str(n), 1) for n in range(2000)]), variable)).slots
    assert (len(slots), len({id(slot.keys) for slot in slots})) == (2000, 1)


@st.composite
def _graphs_and_walks(draw: st.DrawFn) -> tuple[bytes, list[str], int]:
    """Return a graph, a walk from its root, as names, and the node at its end."""
    count = draw(st.integers(1, 8))
    child = st.tuples(st.integers(0, count - 1), NAMES)
    children = draw(st.lists(st.lists(child, max_size=5, unique_by=lambda c: c[1]), min_size=count, max_size=count))
    names, at = [], 0
    for _ in range(draw(st.integers(0, 6))):
        if children[at]:
            at, name = draw(st.sampled_from(children[at]))
            names.append(name)
    nodes = [_node(each, [("VARIABLE_VALUE", "", f"key of {i}")]) for i, each in enumerate(children)]
    return _built(*nodes), names, at


@given(_graphs_and_walks())
def test_any_walk_in_escaped_names_ends_at_its_node(case: tuple[bytes, list[str], int]) -> None:
    graph, node = parse_object_graph(case[0]), case[2]
    names = [name.replace(".", "..").replace("/", ".S") for name in case[1]]
    path = "/".join(names)
    assert graph.find(path) == graph.find(path + SUFFIX) == f"key of {node}"
    assert all(name in graph.child_names("/".join(names[:i])) for i, name in enumerate(names))


def _use(data: bytes) -> None:
    try:
        graph = parse_object_graph(data)
    except ValueError:
        return
    for key, value in graph.keys.items():
        assert graph.find(key) == key
        assert value.path is None or graph.find(value.path) in {None, *graph.keys}
    for name in graph.child_names():
        assert graph.find(f"{name}/a/b.c/{name}") in {None, *graph.keys}
    assert all(slot.key is None or slot.key in slot.keys for slot in graph.slots)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_graph_or_a_value_error(data: bytes) -> None:
    _use(data)


@given(st.sampled_from(CASES), st.lists(EDITS, min_size=1, max_size=4))
def test_real_graph_with_bytes_replaced_is_a_graph_or_a_value_error(case: str, edits: list) -> None:
    data = _case(case)
    for where, new, removed in edits:
        at = int(where * len(data))
        data = data[:at] + new + data[at + removed :]
    _use(data)

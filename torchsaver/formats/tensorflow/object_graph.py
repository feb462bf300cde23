"""The graph of objects in a checkpoint of TensorFlow 2: which key has the values of which object, and under what names.

    node          children | attributes, the values stored of it | slot variables, of an optimizer; node 0 is the root
    key           path of the node | /.ATTRIBUTES/ | attribute, nearly always VARIABLE_VALUE
    path of slot  path of the variable | /.OPTIMIZER_SLOT/ | path of the optimizer | / | name of the slot

Of all the paths that lead to a node its key has the shortest, so a key need not start with the name a user thinks of:
names are found by walking the graph. In keys a part of a path has `.` as `..` and `/` as `.S`.

Source: trackable_object_graph.proto and trackable_utils.py in TensorFlow.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from torchsaver.formats.tensorflow.wire import Schema, parse_message

OBJECT_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
VARIABLE_VALUE = "VARIABLE_VALUE"
_ATTRIBUTES = "/.ATTRIBUTES/"

_GRAPH = Schema({1: ("nodes", "bytes*")})
_NODE = Schema({1: ("children", "bytes*"), 2: ("attributes", "bytes*"), 3: ("slots", "bytes*")})
_CHILD = Schema({1: ("node", "int64"), 2: ("name", "bytes")})
_ATTRIBUTE = Schema({1: ("name", "bytes"), 2: ("full_name", "bytes"), 3: ("key", "bytes")})
_SLOT = Schema({1: ("variable", "int64"), 2: ("name", "bytes"), 3: ("slot", "int64")})

# Keys have their paths in them, so TensorFlow's graphs are larger than all their paths. A chain of nodes with keys of a
# byte each is not, and its paths would grow as the square of it.
_MOST_PATH_GROWTH = 8
_FREE_PATH_CHARS = 1 << 20
# Of a path's parts that are not escaped any run may be one name with slashes in it, or paths through several objects;
# beyond these numbers nothing is found, or a file could have names that take hours to look up.
_MOST_SLASHES = 15
_MOST_REACHED = 64
_ESCAPED = re.compile(r"\.([.S])")
_Spelling: TypeAlias = Callable[[str], Iterator[str]]


class ObjectValue(NamedTuple):
    """A value in the checkpoint.

    Attributes:
        key: The checkpoint's key of it; a damaged checkpoint may lack it.
        attribute: What of its object it is: VARIABLE_VALUE, or ITERATOR, the name of a table, ...
        full_name: Name of the variable without ":0"; "" if it has none. Many may have the same.
        path: The shortest path to its object, not escaped; None for a slot variable, to which no path leads.
    """

    key: str
    attribute: str
    full_name: str
    path: str | None


class SlotVariable(NamedTuple):
    """What an optimizer keeps for a variable, if it is one of Keras up to 2.10 or of TensorFlow 1.

    Attributes:
        slot_name: What it is called there, "m" or "momentum".
        optimizer: Path of the optimizer; None if no path leads to it.
        variable: Path of the variable; None if no path leads to it.
        variable_key: Key of the variable's value; None if it has none.
        key: Key of the slot variable's own value; None if it has none.
        keys: Keys of all that is stored of the slot variable.
    """

    slot_name: str
    optimizer: str | None
    variable: str | None
    variable_key: str | None
    key: str | None
    keys: tuple[str, ...]


class _Node(NamedTuple):
    """A node as the message has it: of children with the same name the first counts."""

    children: dict[str, int]
    attributes: list[tuple[str, str, str]]  # key, attribute, full name
    slots: list[tuple[int, str, int]]  # variable, name, slot variable


def escape(name: str) -> str:
    """Return a part of a path as keys have it."""
    return name.replace(".", "..").replace("/", ".S")


def parse_object_graph(data: bytes) -> ObjectGraph:
    """Return the graph in a TrackableObjectGraph, in time and memory linear in its size.

    Args:
        data: The message, which is the value of the string tensor OBJECT_GRAPH_KEY. An empty one has no objects.

    Raises:
        ValueError: It is damaged; the reason names the node.
    """
    messages = parse_message(data, _GRAPH)["nodes"]
    nodes = []
    known: dict[bytes, _Node] = {}  # a node may be no more than two bytes of a file, and there may be a million of them
    for number, message in enumerate(messages):
        node = known.get(message)
        if node is None:
            try:
                node = known[message] = _parse_node(message, len(messages))
            except ValueError as error:  # UnicodeDecodeError too
                raise ValueError(f"object graph, node {number}: {error}") from error
        nodes.append(node)
    most_chars = _MOST_PATH_GROWTH * len(data) + _FREE_PATH_CHARS
    return ObjectGraph(nodes, _shortest_paths(nodes, most_chars))


def _parse_node(data: bytes, node_count: int) -> _Node:
    """Return a node; what it has twice, byte for byte, is there once."""
    message = parse_message(data, _NODE)
    children: dict[str, int] = {}
    for each in dict.fromkeys(message["children"]):
        child = parse_message(each, _CHILD)
        children.setdefault(child["name"].decode(), _checked(child["node"], node_count))
    attributes = []
    for each in dict.fromkeys(message["attributes"]):
        attribute = parse_message(each, _ATTRIBUTE)
        values = attribute["key"].decode(), attribute["name"].decode(), attribute["full_name"].decode()
        if values[0]:  # the empty one is the header's, in a bundle
            attributes.append(values)
    slots = []
    for each in dict.fromkeys(message["slots"]):
        slot = parse_message(each, _SLOT)
        variable, own = _checked(slot["variable"], node_count), _checked(slot["slot"], node_count)
        slots.append((variable, slot["name"].decode(), own))
    return _Node(children, attributes, slots)


def _checked(number: int, node_count: int) -> int:
    if not 0 <= number < node_count:
        raise ValueError(f"it refers to node {number} of {node_count}")
    return number


def _shortest_paths(nodes: Sequence[_Node], most_chars: int) -> dict[int, str]:
    """Return the paths of the nodes that have values, are optimizers or have slots, so far as any leads to them.

    Raises:
        ValueError: They have more than `most_chars` characters.
    """
    wanted = {number for number, node in enumerate(nodes) if node.attributes or node.slots}
    wanted.update(variable for node in nodes for variable, _, _ in node.slots)
    origins = _breadth_first(nodes)
    paths = {}
    for number in sorted(wanted & origins.keys()):
        most_chars -= origins[number].path_chars
        if most_chars < 0:
            raise ValueError("object graph: its paths are far longer than itself")
        parts, at = [], number
        while at:
            parts.append(origins[at].name)
            at = origins[at].parent
        paths[number] = "/".join(reversed(parts))
    return paths


class _Origin(NamedTuple):
    """How a node is first reached."""

    parent: int
    name: str
    path_chars: int  # with a slash at the start


def _breadth_first(nodes: Sequence[_Node]) -> dict[int, _Origin]:
    """Return how each node that can be reached is reached first; node 0 is where the walk starts."""
    origins = {0: _Origin(0, "", 0)} if nodes else {}
    queue = list(origins)
    for number in queue:  # which grows
        for name, child in nodes[number].children.items():
            if child not in origins:
                origins[child] = _Origin(number, name, origins[number].path_chars + 1 + len(name))
                queue.append(child)
    return origins


class ObjectGraph:
    """The objects of a checkpoint: their values, and the ways to them. It never changes, so threads may share it.

    Attributes:
        keys: {key: value} of all that is stored of the objects, in the order of the graph.
        slots: The slot variables of all optimizers, in the order of the graph.
    """

    def __init__(self, nodes: Sequence[_Node], paths: dict[int, str]) -> None:
        """Arrange nodes that `parse_object_graph` has checked."""
        self._children = [node.children for node in nodes]
        values = {
            number: tuple(ObjectValue(*attribute, paths.get(number)) for attribute in node.attributes)
            for number, node in enumerate(nodes)
            if node.attributes
        }
        self._values = [values.get(number, ()) for number in range(len(nodes))]
        self.keys: dict[str, ObjectValue] = {}
        by_full_name = defaultdict(set)
        for value in (value for values in self._values for value in values):
            self.keys.setdefault(value.key, value)
            by_full_name[value.full_name].add(value.key)
        by_full_name.pop("", None)
        self._by_full_name = {name: keys.pop() if len(keys) == 1 else None for name, keys in by_full_name.items()}
        slashes = (name.count("/") for each in self._children if each for name in each)
        self._most_name_parts = 1 + min(max(slashes, default=0), _MOST_SLASHES)
        slots = [(number, slot) for number, node in enumerate(nodes) if node.slots for slot in node.slots]
        named = {end for _, (variable, _, own) in slots for end in (variable, own)}
        key_of = {end: self._value_key(end, None) for end in named}
        keys_of = {end: tuple(value.key for value in self._values[end]) for end in named}  # many slots may share one
        self.slots = [
            SlotVariable(name, paths.get(number), paths.get(variable), key_of[variable], key_of[own], keys_of[own])
            for number, (variable, name, own) in slots
        ]

    def find(self, name: str) -> str | None:
        """Return the key of the value that a user calls `name`.

        Args:
            name: What matches first of: a key; a path from the root, by any way and not only the shortest, whose parts
                may be escaped or not; a full name; a path whose parts lack the underscore of a private attribute
                (Keras 3 has layer.kernel as `_kernel`). A key and a path may come without /.ATTRIBUTES/VARIABLE_VALUE.

        Returns:
            None if nothing matches, if the object has several values of which none is VARIABLE_VALUE, or if several
            objects match alike.
        """
        for key in (name, f"{name}{_ATTRIBUTES}{VARIABLE_VALUE}"):
            if key in self.keys:
                return key
        path, separator, suffix = name.rpartition(_ATTRIBUTES)
        path, attribute = (path, suffix) if separator else (name, None)
        for spelling in (_escaped, _readable):
            if found := self._value_keys(self._walk(path, spelling), attribute):
                return _only(found)
        if name in self._by_full_name:
            return self._by_full_name[name]
        return _only(self._value_keys(self._walk(path, _private), attribute))

    def child_names(self, path: str = "") -> list[str]:
        """Return the names of an object's children, escaped: `find` takes each after the path and a slash.

        Args:
            path: From the root, as in `find`; the root's own is "".

        Returns:
            The names in the order of the graph; [] if there is no such object.
        """
        for spelling in (_escaped, _readable, _private):
            if nodes := self._walk(path, spelling):
                return [escape(name) for name in dict.fromkeys(name for node in nodes for name in self._children[node])]
        return []

    def _walk(self, path: str, spelling: _Spelling) -> list[int]:
        """Return the nodes at the end of a path, sorted: in a path that is not escaped a name may have slashes.

        None of a path along which more than _MOST_REACHED nodes are reached at a time.
        """
        parts = path.split("/") if path else []
        reached: list[set[int]] = [set() for _ in range(len(parts) + 1)]  # by the number of parts taken
        reached[0].update([0] if self._children else [])
        most_name_parts = 1 if spelling is _escaped else self._most_name_parts
        for start in range(len(parts)):
            if len(reached[start]) > _MOST_REACHED:
                return []
            for end in range(start + 1, min(start + most_name_parts, len(parts)) + 1) if reached[start] else ():
                reached[end].update(self._step(reached[start], list(spelling("/".join(parts[start:end])))))
        return sorted(reached[-1])

    def _step(self, nodes: Iterable[int], names: Sequence[str]) -> Iterator[int]:
        for node in nodes:
            for name in names:
                if name in self._children[node]:
                    yield self._children[node][name]

    def _value_keys(self, nodes: Iterable[int], attribute: str | None) -> set[str]:
        keys = (self._value_key(node, attribute) for node in nodes)
        return {key for key in keys if key is not None}

    def _value_key(self, node: int, attribute: str | None) -> str | None:
        values = self._values[node]
        wanted = VARIABLE_VALUE if attribute is None else attribute
        for value in values:
            if wanted in (value.attribute, escape(value.attribute)):
                return value.key
        return values[0].key if attribute is None and len(values) == 1 else None


def _only(keys: set[str]) -> str | None:
    return next(iter(keys)) if len(keys) == 1 else None


def _escaped(text: str) -> Iterator[str]:
    """Yield the name that keys have as `text`, if there is one."""
    name = _ESCAPED.sub(lambda match: "." if match[1] == "." else "/", text)
    if escape(name) == text:
        yield name


def _readable(text: str) -> Iterator[str]:
    """Yield the names that a user may write as `text`."""
    yield text
    yield from _escaped(text)


def _private(text: str) -> Iterator[str]:
    """Yield the names of attributes that a user may write as `text`, Python's private ones among them."""
    for name in _readable(text):
        yield name
        yield f"_{name}"

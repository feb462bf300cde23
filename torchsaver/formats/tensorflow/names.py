"""The file names of TensorFlow's checkpoints, and what users pass in their place.

PREFIX.index, PREFIX.data-00000-of-00002    V2, a bundle; PREFIX.meta beside it is a graph, and has no values
FILE                                        V1
FILE-00000-of-00002                         V1 in several files; its "prefix" is FILE-?????-of-00002
DIR/variables/variables                     the prefix of a SavedModel in DIR
"""

from __future__ import annotations

import contextlib
import os
import re

INDEX_ENDING = ".index"
MOST_SHARDS = 99_999  # data files of a bundle: their names have five digits
_DATA_FILE = re.compile(r"(.+)\.data-[0-9]{5}-of-[0-9]{5}\Z", re.DOTALL)
_GRAPH_ENDING = ".meta"
_V1_SHARD = re.compile(r"(.*)-(?:[0-9]{5}|\?{5})-of-([0-9]{5})\Z", re.DOTALL)


def index_file(prefix: str) -> str:
    """Return the index of a bundle."""
    return prefix + INDEX_ENDING


def data_file(prefix: str, number: int, count: int) -> str:
    """Return a bundle's data file `number`, from 0, of `count`."""
    return f"{prefix}.data-{number:05d}-of-{count:05d}"


def is_index(path: str) -> bool:
    """Return whether a file is named as the index of a bundle."""
    return path.endswith(INDEX_ENDING) and path != INDEX_ENDING


def index_beside(path: str) -> str | None:
    """Return the index that belongs to a path named as a data file or as a graph, None for other names."""
    prefix = path.removesuffix(_GRAPH_ENDING) if is_graph(path) else prefix_of_data_file(path)
    return None if prefix is None else index_file(prefix)


def is_graph(path: str) -> bool:
    """Return whether a file is named as the graph beside a checkpoint."""
    return path.endswith(_GRAPH_ENDING) and path != _GRAPH_ENDING


def prefix_of_data_file(path: str) -> str | None:
    """Return the prefix of a path named as a data file, None for other names."""
    match = _DATA_FILE.match(path)
    return None if match is None else match[1]


def shards_of_pattern(path: str) -> list[str]:
    """Return the files of a V1 checkpoint whose name TensorFlow gives with question marks; none for other names."""
    return v1_shards(path) if "?????-of-" in os.path.basename(path) else []


def v1_shards(path: str) -> list[str]:
    """Return all files of the V1 checkpoint a file belongs to, by its name: itself, if it is not one of several."""
    match = _V1_SHARD.match(path)
    if match is None or not int(match[2]):
        return [path]
    return [f"{match[1]}-{number:05d}-of-{match[2]}" for number in range(int(match[2]))]


def v1_patterns(prefix: str) -> list[str]:
    """Return the names, with question marks, of V1 checkpoints in several files whose name begins with `prefix`."""
    directory, base = os.path.split(prefix)
    found = set()
    with contextlib.suppress(OSError, ValueError):  # ValueError: a NUL
        for name in os.listdir(directory or "."):
            match = _V1_SHARD.match(name)
            if match is not None and match[1] == base:
                found.add(f"{prefix}-?????-of-{match[2]}")
    return sorted(found)


def saved_model_prefix(directory: str) -> str:
    """Return the prefix of the values of a SavedModel."""
    return os.path.join(directory, "variables", "variables")

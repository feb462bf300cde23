"""Sorted string tables written here: TensorFlow's own bytes for the same entries, and readable whatever the keys."""

from __future__ import annotations

from pathlib import Path

import corpus
import pytest
from corpus import CORPUS
from hypothesis import given
from hypothesis import strategies as st

from torchsaver.formats.regular_file import RegularFile
from torchsaver.formats.tensorflow.sstable import FOOTER_BYTES, read_block, read_handles, read_table
from torchsaver.formats.tensorflow.table_writer import BLOCK_BYTES, format_table
from torchsaver.formats.tensorflow.wire import read_varint

# Written on purpose with other settings than TensorFlow's own.
OTHER_SETTINGS = {"restart1_v2", "snappy_v2", "tiny_blocks_v2"}
INDEXES = sorted(
    path for case in corpus.CASES for path in (CORPUS / case).rglob("*.index") if case not in OTHER_SETTINGS
)


def _table(path: Path) -> list[tuple[bytes, bytes]]:
    return list(read_table(RegularFile(str(path))))


def _handles(path: Path, data: bytes) -> list[tuple[int, int]]:
    path.write_bytes(data)
    return read_handles(RegularFile(str(path)))


@pytest.mark.parametrize("path", INDEXES, ids=lambda path: str(path.relative_to(CORPUS)))
def test_table_of_the_same_entries_is_tensorflows_byte_for_byte(path: Path) -> None:
    assert format_table(_table(path)) == path.read_bytes()


def test_corpus_has_indexes_of_one_block_and_of_several() -> None:
    counts = {len(read_handles(RegularFile(str(path)))) for path in INDEXES}
    assert 1 in counts
    assert max(counts) > 1


def test_v1_file_with_large_entries_is_tensorflows_byte_for_byte() -> None:
    path = CORPUS / "v1_list" / "model.ckpt"
    assert format_table(_table(path)) == path.read_bytes()


@given(st.dictionaries(st.binary(max_size=40), st.binary(max_size=200), max_size=80))
def test_any_entries_come_back(tmp_path_factory: pytest.TempPathFactory, entries: dict[bytes, bytes]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.index"
    path.write_bytes(format_table(sorted(entries.items())))
    assert _table(path) == sorted(entries.items())


def test_entries_beyond_a_block_come_back_from_several(tmp_path: Path) -> None:
    entries = [(b"%08d" % number, bytes(1000)) for number in range(1000)]
    path = tmp_path / "many.index"
    assert len(_handles(path, format_table(entries))) == 1 + 1000 * 1000 // BLOCK_BYTES
    assert _table(path) == entries


@pytest.mark.parametrize(("nbytes", "blocks"), [(BLOCK_BYTES - 15, 1), (BLOCK_BYTES - 14, 2)])
def test_block_is_ended_when_it_is_just_full(nbytes: int, blocks: int, tmp_path: Path) -> None:
    # Sizes take 5 bytes, the key 1, and the one restart and the number of restarts 4 each.
    table = format_table([(b"a", bytes(nbytes)), (b"b", b"")])
    assert len(_handles(tmp_path / "full.index", table)) == blocks


@pytest.mark.parametrize(("nbytes", "blocks"), [(2 * BLOCK_BYTES - 2, 2), (2 * BLOCK_BYTES - 1, 3)])
def test_entry_of_two_blocks_size_has_one_for_itself(nbytes: int, blocks: int, tmp_path: Path) -> None:
    entries = [(b"a", b"small"), (b"b", bytes(nbytes)), (b"c", b"small")]
    path = tmp_path / "large.index"
    assert len(_handles(path, format_table(entries))) == blocks
    assert _table(path) == entries


@pytest.mark.parametrize(
    ("last", "following", "separator"),
    [
        (b"the quick", b"the who", b"the r"),
        (b"abc", b"abd", b"abc"),  # nothing shorter lies between
        (b"abc", b"abcd", b"abc"),  # a prefix stays as it is
        (b"a\xfe", b"a\xff", b"a\xfe"),
        (b"ab\xff", b"ad", b"ac"),
    ],
)
def test_separator_of_two_blocks_is_short_and_lies_between(
    last: bytes, following: bytes, separator: bytes, tmp_path: Path
) -> None:
    data = format_table([(last, bytes(BLOCK_BYTES)), (following, b"")])
    assert _index_keys(tmp_path / "two.index", data)[0] == separator


@pytest.mark.parametrize(("last", "successor"), [(b"model", b"n"), (b"\xff\xffa9", b"\xff\xffb"), (b"\xff", b"\xff")])
def test_last_separator_is_the_shortest_key_above(last: bytes, successor: bytes, tmp_path: Path) -> None:
    assert _index_keys(tmp_path / "one.index", format_table([(last, b"")])) == [successor]


def _index_keys(path: Path, data: bytes) -> list[bytes]:
    path.write_bytes(data)
    footer, numbers, position = data[-FOOTER_BYTES:], [], 0
    for _ in range(4):  # the handles of the metaindex and of the index
        number, position = read_varint(footer, position)
        numbers.append(number)
    return [key for key, _ in read_block(RegularFile(str(path)), numbers[2], numbers[3])]


def test_table_without_entries_is_readable(tmp_path: Path) -> None:
    assert _handles(tmp_path / "empty.index", format_table([])) == []


@pytest.mark.parametrize("keys", [[b"b", b"a"], [b"a", b"a"]])
def test_keys_that_do_not_ascend_are_refused(keys: list[bytes]) -> None:
    with pytest.raises(ValueError, match="comes after"):
        format_table([(key, b"") for key in keys])

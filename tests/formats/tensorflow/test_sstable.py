"""Sorted string tables: those of TensorFlow are read whole, and no damage passes for a table."""

from __future__ import annotations

from pathlib import Path

import corpus
import pytest
from corpus import CORPUS, CORRUPT

from torchsaver.errors import CorruptCheckpointError
from torchsaver.formats.checksum import crc32c
from torchsaver.formats.regular_file import RegularFile
from torchsaver.formats.tensorflow.sstable import FOOTER_BYTES, MAGIC, has_magic, masked, read_handles, read_table
from torchsaver.formats.tensorflow.wire import format_varint

# Cases whose every key is a tensor as a whole: partitioned ones have a key for each slice too.
PLAIN = [case for case in corpus.CASES if corpus.expected(case)["kind"] == "v2" and "partitioned" not in case]
DAMAGED_TABLES = [
    *("block_3_bytes", "block_restart_count_absurd", "block_restart_zero", "block_shared_beyond_key"),
    *("block_type_snappy_garbage", "block_value_beyond", "footer_handle_varint", "handle_beyond_file"),
    *("handle_varint_11", "index_47_bytes", "index_cut_footer", "index_cut_half", "index_empty", "index_extra_tail"),
    *("index_flip_data_block", "index_flip_footer_handle", "index_flip_index_block", "index_flip_stored_crc"),
    *("index_is_text", "index_wrong_magic", "keys_duplicate", "snappy_offset_zero", "ten_thousand_empty_handles"),
]


def _table(path: Path) -> dict[bytes, bytes]:
    return dict(read_table(RegularFile(str(path))))


def _index(case: str) -> Path:
    return CORPUS / case / (corpus.expected(case)["prefix"] + ".index")


def test_masked_checksum_of_nothing_is_that_of_the_format() -> None:
    assert masked(crc32c(b"")) == 0xA282EAD8


@pytest.mark.parametrize("case", PLAIN)
def test_table_of_tensorflow_has_the_header_and_every_key_in_order(case: str) -> None:
    keys = sorted(corpus.key_of(tensor) for tensor in corpus.expected(case)["tensors"])
    assert list(_table(_index(case))) == [b"", *keys]


def test_tables_of_one_content_are_read_alike_whatever_their_blocks() -> None:
    snappy, tiny = _table(_index("snappy_v2")), _table(_index("tiny_blocks_v2"))
    assert len(read_handles(RegularFile(str(_index("tiny_blocks_v2"))))) > 100
    assert len(snappy) == 251
    assert snappy == tiny


def test_v1_file_is_a_table_whose_first_key_is_empty() -> None:
    table = _table(CORPUS / "v1_list" / "model.ckpt")
    assert next(iter(table)) == b""
    assert len(table) == 1 + len(corpus.expected("v1_list")["tensors"])


@pytest.mark.parametrize("case", DAMAGED_TABLES)
def test_damaged_table_of_the_corpus_is_refused_and_named(case: str) -> None:
    path = CORRUPT / case / "m.index"
    with pytest.raises(CorruptCheckpointError) as caught:
        _table(path)
    assert caught.value.path == str(path)


def test_table_of_a_checkpoint_without_tensors_has_its_header_alone() -> None:
    assert list(_table(CORRUPT / "table_without_entries" / "m.index")) == [b""]


def test_table_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = _index("v2_dict").read_bytes()
    cut = tmp_path / "cut.index"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(CorruptCheckpointError):
            _table(cut)


@pytest.mark.parametrize(("case", "step"), [("v2_dict", 1), ("snappy_v2", 13)])
def test_table_with_any_byte_flipped_is_refused_or_holds_the_same(case: str, step: int, tmp_path: Path) -> None:
    whole, wanted = _index(case).read_bytes(), _table(_index(case))
    flipped = tmp_path / "flipped.index"
    unseen = []
    for position in range(0, len(whole), step):
        flipped.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        try:
            assert _table(flipped) == wanted
            unseen.append(position)
        except CorruptCheckpointError:
            pass
    # Nobody reads the metaindex block, of 13 bytes with its trailer, nor its handle and the padding in the footer.
    assert len(unseen) <= 13 + FOOTER_BYTES - 8


def test_magic_tells_a_table_from_other_files(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"x" * 100)
    assert not has_magic(RegularFile(str(other)))
    assert has_magic(RegularFile(str(_index("v2_dict"))))


def test_keys_far_longer_than_their_block_are_refused(tmp_path: Path) -> None:
    """All but the first share a long beginning, and with no whole one after it there could be any number of them."""
    path = tmp_path / "m.index"
    for count, is_refused in ((60, False), (20_000, True)):
        entries = b"\x00\x90\x4e\x00" + b"a" * 10_000  # shared, unshared (10000), value size
        entries += b"".join(b"\x90\x4e\x05\x00%05d" % number for number in range(count))
        blocks = [entries, b"\x00\x01\x08b\x00" + format_varint(len(entries) + 8).ljust(7, b"\x00")]
        contents = [each + bytes(4) + b"\x01\x00\x00\x00" for each in blocks]
        data, index = (each + b"\x00" + masked(crc32c(each + b"\x00")).to_bytes(4, "little") for each in contents)
        handles = b"\x00\x00" + format_varint(len(data)) + format_varint(len(contents[1]))
        path.write_bytes(data + index + handles.ljust(40, b"\x00") + MAGIC)
        if is_refused:
            with pytest.raises(CorruptCheckpointError, match="far longer"):
                _table(path)
        else:
            assert len(_table(path)) == count + 1

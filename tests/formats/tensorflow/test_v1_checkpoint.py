"""V1 checkpoints as any other is read and verified: strings beside damage, and dtypes that V1 has no place for."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.fuzz.messages import Message, table

import torchsaver as ts
from torchsaver.formats.checksum import crc32c
from torchsaver.formats.regular_file import RegularFile
from torchsaver.formats.tensorflow.slices import Range, slice_key
from torchsaver.formats.tensorflow.sstable import masked, read_index

FLOAT, STRING, BFLOAT16 = 1, 7, 14
WHOLE = Message([(1, Message())])


def _write(path: Path, types: dict[bytes, tuple[int, Message]]) -> str:
    """Write vectors of two elements: by name, dtype and TensorProto."""
    shape = Message([(2, Message([(1, 2)]))])
    metas = [(1, Message([(1, name), (2, shape), (3, number), (4, WHOLE)])) for name, (number, _) in types.items()]
    rows = {
        slice_key(name, [Range()]): Message([(2, Message([(1, name), (2, WHOLE), (3, values)]))])
        for name, (_, values) in types.items()
    }
    path.write_bytes(table([(b"", Message([(1, Message(metas))])), *sorted(rows.items())]))
    return str(path)


def test_damage_beside_strings_is_reported_of_the_tensor_that_has_it(tmp_path: Path) -> None:
    texts, floats = Message([(8, b"a"), (8, b"bc")]), Message([(5, bytes(8))])
    one_too_few = Message([(5, bytes(4))])
    prefix = _write(tmp_path / "m", {b"damaged": (FLOAT, one_too_few), b"text": (STRING, texts), b"w": (FLOAT, floats)})
    report = ts.verify_checkpoint(prefix)
    assert report.verdict == "damaged"
    assert [str(damage.tensor).partition("\0")[0] for damage in report.damage] == ["damaged"]
    assert report.checked_tensors == 2


def test_dtype_without_a_place_in_v1_is_refused_by_name_and_the_others_are_read(tmp_path: Path) -> None:
    prefix = _write(tmp_path / "m", {b"odd": (BFLOAT16, Message()), b"w": (FLOAT, Message([(5, bytes(8))]))})
    with ts.load_checkpoint(prefix) as reader:
        assert reader.get_tensor("w").tolist() == [0, 0]
        with pytest.raises(ts.UnsupportedCheckpointError, match="'odd' is DT_BFLOAT16"):
            reader.get_tensor("odd")
    assert ts.verify_checkpoint(prefix).verdict == "unsupported"


def test_values_in_a_block_of_unknown_type_are_unsupported_to_verify_too(tmp_path: Path) -> None:
    names = [b"w%05d" % number for number in range(1200)]  # more than go into the block of the meta
    prefix = _write(tmp_path / "m", {name: (FLOAT, Message([(5, bytes(8))])) for name in names})
    file = RegularFile(prefix)
    _, offset, nbytes = read_index(file)[-1]
    file.close()
    data = bytearray(Path(prefix).read_bytes())
    data[offset + nbytes] = 7
    end = offset + nbytes + 1
    data[end : end + 4] = masked(crc32c(data[offset:end])).to_bytes(4, "little")
    Path(prefix).write_bytes(data)
    with pytest.raises(ts.UnsupportedCheckpointError, match="type 7"):
        ts.load_variable(prefix, "w01199")
    assert ts.load_variable(prefix, "w00000").tolist() == [0, 0]
    report = ts.verify_checkpoint(prefix)
    assert report.verdict == "unsupported"
    assert 0 < report.checked_tensors < report.tensors

"""Where a file has its tensors, and the texts its header and its checksum are made of."""

from __future__ import annotations

import json

import pytest

from torchsaver.formats.file_layout import FileLayout, TensorSpec, bytes_of, lay_out
from torchsaver.formats.json_text import canonical_json

ODD_KEYS = [
    "w",
    "",
    "a b",
    'quo"te',
    "back\\slash",
    "tab\t",
    "nul\x00",
    "\u00e9",
    "\U0001f600",
    "\u2028",
    "Z",
    "{}",
    "[1,2]",
]
SPECS = [TensorSpec(key, "F32", (number, 2), 0, 8 * number) for number, key in enumerate(ODD_KEYS)]
SPECS += [TensorSpec("scalar", "I8", (), 0, 1), TensorSpec("large", "F64", (2**40, 1, 3), 0, 3 << 43)]


def test_layout_any_order_given_puts_wide_dtypes_first_then_keys() -> None:
    given = [("c", "I8", [3]), ("b", "F64", [1]), ("a", "F64", [0]), ("d", "F32", [1]), ("\u00e9", "F4", [2])]
    wanted = [("a", 0, 0), ("b", 0, 8), ("d", 8, 12), ("c", 12, 15), ("\u00e9", 15, 16)]
    for tensors in (given, given[::-1]):
        assert [(spec.key, spec.start, spec.end) for spec in lay_out(tensors).specs.values()] == wanted


@pytest.mark.parametrize("specs", [SPECS, SPECS[::-1], []], ids=["in order", "in another order", "none"])
def test_layout_content_is_canonical_json_of_dtype_and_shape_by_key(specs: list[TensorSpec]) -> None:
    wanted = {spec.key: [spec.dtype, list(spec.shape)] for spec in specs}
    assert FileLayout(specs).content == canonical_json(wanted).encode()


def test_layout_members_are_the_header_s_json_in_the_order_of_the_file() -> None:
    found = json.loads(f"{{{FileLayout(SPECS).members}}}")
    wanted = {
        spec.key: {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [spec.start, spec.end]}
        for spec in SPECS
    }
    assert list(found.items()) == list(wanted.items())
    assert FileLayout(SPECS).members == json.dumps(wanted, separators=(",", ":"), ensure_ascii=False)[1:-1]


@pytest.mark.parametrize(
    ("dtype", "shape", "wanted"),
    [
        ("I8", [0, 2**63 - 1], 0),
        ("I8", [0, 2**63], None),
        ("F4", [0, 2**63], None),
        ("F4", [2**63 - 2], 2**62 - 1),
        ("F4", [3], None),
    ],
)
def test_bytes_of_at_the_limits(dtype: str, shape: list[int], wanted: int | None) -> None:
    assert bytes_of(dtype, shape) == wanted

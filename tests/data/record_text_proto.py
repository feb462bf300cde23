"""Records what protobuf's own text format makes of texts, strings and doubles, into text_proto.json beside this file.

Run it in an environment that has TensorFlow (any 2.x), `python tests/data/record_text_proto.py`; pytest only reads the
result. Same TensorFlow and protobuf, same file: the texts are hand-made, or mutated from those with a fixed seed.

    {"versions": {..}, "parse": [[TEXT, {FIELD: [VALUE, ..]} or null for an error], ..], "print": [[KIND, VALUE, TEXT], ..]}

Doubles stand as repr() gives them, because JSON has neither nan nor inf. In "print" the value is the one element of
all_model_checkpoint_paths or all_model_checkpoint_timestamps.
"""

import json
import random
import struct
from pathlib import Path

import google.protobuf
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.python.training.checkpoint_state_pb2 import CheckpointState

SINGLE, PATHS, TIMES, PRESERVED = FIELDS = (
    "model_checkpoint_path",
    "all_model_checkpoint_paths",
    "all_model_checkpoint_timestamps",
    "last_preserved_timestamp",
)
STRINGS = [
    *(r'"a"', r"'a'", r'"it\'s"', r"'it\"s'", r'"a" "b"', r"""'a'"b"'c'""", '"a"\n  # comment\n  "b"', '""', "'' ''"),
    *(r'"\a\b\f\n\r\t\v\\\'\"\?"', r'"\1\12\123\1234\0"', r'"\377"', r'"\400"', r'"\777"', r'"\8"', r'"\9"'),
    *(
        r'"\303\251"',
        r'"\303" "\251"',
        r'"\303"',
        r'"\x41\x4a\xC3\xa9"',
        r'"\x4"',
        r'"\x"',
        r'"\xg"',
        r'"\x414"',
        r'"\X41"',
    ),
    *(r'"\u00e9"', r'"\u00E9x"', r'"\u12"', r'"\ud800"', r'"\ud83d\ude00"', r'"\ude00\ud83d"', r'"\U0001F600"'),
    *(r'"\U0010ffff"', r'"\U00110000"', r'"\Uffffffff"', r'"\U1234"', r'"\u0000"', r'"\q"', r'"\N"', r'"\/"', r'"\ "'),
    *(
        '"\u00e9"',
        '"\u65e5\u672c\U0001f600"',
        '"\t"',
        '"\x01\x7f"',
        '"\x00"',
        '"a\nb"',
        '"a\\\nb"',
        '"a\r"',
        '"\u2028"',
        '"\x85"',
    ),
    *(
        '"a',
        "'a",
        "\"a'",
        '"\\"',
        "a",
        "1",
        "nan",
        '"a"b',
        "b'a'",
        'u"a"',
        "<a>",
        "{}",
        "-'a'",
        '"#"',
        '"a\x0bb"',
        '"\ufeff"',
    ),
]
DOUBLES = [
    *("0", "1", "-1", "+1", "00", "01", "-01", "007", "08", "0x10", "0X1f", "-0x10", "1.", ".5", "-.5", ".", "-", "- 1"),
    *("1.5", "1.5f", "1.5F", "1f", "0f", "5.f", ".5f", "1ff", "1e5", "1E5", "1e+5", "1e-5", "1e", "1e+", "1.e5", ".5e5f"),
    *("00.5", "01.5", "0.5", "-0.0", "-0", "1_000", "1,5", "1.5.5", "1e5.5", "1e400", "-1e400", "1e-400", "0" * 400, "9" * 400),
    *("inf", "Inf", "INF", "-inf", "+inf", "- inf", "infinity", "-Infinity", "inff", "infinityf", "nan", "NaN", "-nan", "+nan", "nanf"),
    *("nan(1)", "inf inity", "true", "false", "one", '"1"', "1.7976931348623157e308", "4.9e-324", "18446744073709551616"),
    *("\u0661", "1\u0662", "\uff11", "0b1", "0o7", "1d", "1L", "1u", "--1", "+-1", "1 2", "-\n1", "- # c\n 1", "0e0", "0.", "1.f"),
]  # fmt: skip
SHAPES = [
    *("", " \t\r\n", "# only a comment", "#", "\x0b\x0c", "\x00", "\ufeff", "\u00a0", "\u2003", "\x1c", "\x85", "\u2028", ";", ","),
    *('P: "a"', 'P:"a"', 'P : "a"', 'P\n:\n"a"', 'P # c\n : # c\n "a"', 'P: "a"\r\nP: "b"\r\n', 'P: "a"\rP: "b"', 'P: "a" P: "b"'),
    *('P: "a", P: "b"', 'P: "a"; P: "b";', 'P: "a",;', 'P: "a";;', ', P: "a"', 'P: "a" ,\n; P: "b"', 'P: ["a", "b"]', "P: []", "P:[ ]"),
    *('P: ["a"]', 'P: ["a",]', "P: [,]", 'P: ["a" "b"]', 'P: ["a" "b", "c"]', 'P: ["a"', 'P: "a"]', 'P: [["a"]]', 'P ["a"]', 'P: ["a"],'),
    *("T: [1, 2.5, -inf]", "T: [1 2]", "T: [1; 2]", "T: 1 T: 2", "T: 1T: 2", "T: 1;T: 2", "T: [1], T: [2]", "T: -[1]", "L: [1]", "L: [1, 2]"),
    *("L: []", 'S: ["a"]', 'S: "a" S: "b"', "L: 1 L: 2", 'S "a"', "S", "S:", "S: ;", ': "a"', '"S": "a"', "S {}", 'S: {"a"}', "S <>", "L 1"),
    *('other: "a"', 'other { x: 1 }', 'other: 1 S: "a"', '[x.y]: 1', 's: "a"', 'S_: "a"', "S.a: 1", "1: 1", 'S: "a" other', 'S: "a"}', "{}"),
    *('S: "a" # c', 'S: "a" // c', 'S: "a" /* c */', '\ufeffS: "a"', 'S:\u00a0"a"', 'S:\x0b"a"', 'S:\x1c"a"', 'S: "a"\x00', 'S: "a" T: 1P: "b"'),
    *('#\r S: "a"', '# \x85 S: "a"', '#\u2028S: "a"', 'S: "a"#', 'P: "a" # c\n "b"', "T: 1#c", "T: 1.5f;L:2", "T: nan T: inf", "T:1,T:2,"),
]  # fmt: skip
LETTERS = {"S": SINGLE, "P": PATHS, "T": TIMES, "L": PRESERVED}
ALPHABET = "\"'\\\\\\ \n\t#:,;[]{}<>-+.0123456789abefnrtuvxUX_q\u00e9\u0661\U0001f600\x00\x7f\x85\u00a0"
ODD = [
    "",
    "a b",
    "\"'\\",
    "".join(map(chr, range(0x20))),
    "\x7f\x80\x9f\xa0",
    "\u00e9\u65e5\U0001f600",
    "\u2028\ufeff\ufffd",
    "?\\?/#",
]
ODD += [chr(code) + "1" for code in range(0x21)] + ["%s*?[", "../a", "\U0010ffff"]
NUMBERS = [
    0.0,
    -0.0,
    1.0,
    -1.5,
    0.1,
    1e15,
    1e16,
    123456789012345680.0,
    1e22,
    1e-4,
    1e-5,
    1e-7,
    1.7e308,
    5e-324,
    2.0**53,
]
NUMBERS += [
    float("inf"),
    float("-inf"),
    float("nan"),
    -float("nan"),
    1700000000.123456,
    0.30000000000000004,
    1 / 3,
    1e100,
]


def full_names(text):
    """Put field names in place of the letters S, P, T and L where they stand for a field."""
    out = []
    for index, char in enumerate(text):
        before, after = text[max(0, index - 1) : index], text[index + 1 : index + 2]
        alone = not (before.isalpha() or before in ("_", "\\")) and not (after.isalnum() or after in ("_", "'"))
        out.append(LETTERS[char] if char in LETTERS and alone else char)
    return "".join(out)


def texts():
    """Return the texts to parse, without doubles."""
    made = [full_names(shape) for shape in SHAPES]
    made += [f"{PATHS}: {string}\n" for string in STRINGS] + [f"{SINGLE}: {STRINGS[0]} {TIMES}: {d}\n" for d in DOUBLES]
    chance = random.Random(20240501)
    sound = [text for text in made if parsed(text) is not None]
    for _ in range(400):
        text = "\n".join(chance.sample(sound, 2)) if chance.random() < 0.5 else chance.choice(sound)
        for _ in range(chance.randint(1, 2)):
            at = chance.randint(0, len(text))
            kept = at + chance.choice((0, 0, 1))
            text = text[:at] + chance.choice(ALPHABET) * chance.choice((0, 1, 1)) + text[kept:]
        made.append(text)
    return list(dict.fromkeys(made))


def parsed(text):
    """Return what protobuf reads, None for an error."""
    state = CheckpointState()
    try:
        text_format.Merge(text, state)
    except Exception:  # ParseError, and whatever else it lets through
        return None
    return {
        SINGLE: [state.model_checkpoint_path] if state.model_checkpoint_path else [],
        PATHS: list(state.all_model_checkpoint_paths),
        TIMES: [repr(value) for value in state.all_model_checkpoint_timestamps],
        PRESERVED: [repr(state.last_preserved_timestamp)] if state.last_preserved_timestamp else [],
    }


def main():
    """Write text_proto.json."""
    chance = random.Random(7)
    numbers = NUMBERS + [struct.unpack("<d", chance.randbytes(8))[0] for _ in range(40)]
    printed = [["string", s, text_format.MessageToString(CheckpointState(all_model_checkpoint_paths=[s]))] for s in ODD]
    for value in numbers:
        state = CheckpointState(all_model_checkpoint_timestamps=[value])
        printed.append(["double", repr(value), text_format.MessageToString(state)])
    versions = {"protobuf": google.protobuf.__version__, "tensorflow": tf.__version__}
    parts = {"parse": [[text, parsed(text)] for text in texts()], "print": printed}
    lines = [json.dumps("versions") + ": " + json.dumps(versions)]
    for name, rows in parts.items():
        lines.append(json.dumps(name) + ": [\n" + ",\n".join(map(json.dumps, rows)) + "\n]")
    path = Path(__file__).with_name("text_proto.json")
    path.write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")
    print(path, len(parts["parse"]), "texts,", sum(read is None for _, read in parts["parse"]), "of them errors")


if __name__ == "__main__":
    main()

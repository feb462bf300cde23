"""The fault harness itself works: a few faults of each kind, on this library and on one that cannot pass."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable

import pytest
from faults import strace_log
from faults.crash_states import final_tree
from faults.strace_log import Call
from faults.syscalls import __main__ as command_line
from faults.syscalls.classes import interrupted, power
from faults.syscalls.harness import Harness
from faults.syscalls.orders import Finding, Raised
from faults.syscalls.verdict import Promise, Tally, Violations, judge
from faults.syscalls.zygote import Trace, WorkerError, why_no_strace

needs_strace = pytest.mark.skipif(
    platform.system() != "Linux" or why_no_strace() is not None,
    reason="faults are injected by strace 5.3 or newer, which is not here (apt-get install strace)",
)


@pytest.fixture
def harness_of(request: pytest.FixtureRequest) -> Callable[[str], Harness]:
    """Return a function from the name of an adapter to a harness for it."""

    def make(adapter: str) -> Harness:
        harness = Harness(adapter)
        request.addfinalizer(harness.close)
        try:
            harness.fresh()
            harness.save_cleanly([1], Trace("fsync"))
        except WorkerError as error:
            pytest.skip(f"strace may not trace processes here: {error}")
        return harness

    return make


@needs_strace
def test_torchsaver_holds_at_a_sample_of_kills_errors_and_power_losses(harness_of: Callable[[str], Harness]) -> None:
    harness = harness_of("torchsaver")
    for tally in (*interrupted.kill(harness, 3), *interrupted.inject(harness, 3), *power.powerloss(harness, 10)):
        assert tally.tried
        assert not tally.violations, f"{tally.title}: {tally.examples}"


@needs_strace
def test_overwriting_the_last_file_is_found_out(harness_of: Callable[[str], Harness]) -> None:
    harness = harness_of("overwriting")
    (tally,) = interrupted.kill(harness)
    assert tally.violations["AVAIL"], tally


# ---- traces


def _hex(text: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


def _lines(*lines: str) -> list[str]:
    """Return lines of a trace: paths in <> and strings in quotes turned into hexadecimal, as strace -xx has them."""
    path_or_string = re.compile(r'<(/[^>]*)>|"([^"]*)"')
    return [path_or_string.sub(lambda m: f"<{_hex(m[1])}>" if m[1] else f'"{_hex(m[2])}"', line) for line in lines]


def test_parse_joins_the_halves_of_a_call_and_knows_what_was_struck() -> None:
    calls = strace_log.parse(
        _lines(
            '7 write(3</d/a>, "xy", 2 <unfinished ...>',
            "8 fsync(4</d/b>) = -1 EIO (Input/output error) (INJECTED)",
            "7 <... write resumed>) = 2",
            "9 --- SIGTERM {si_signo=SIGTERM} ---",
            "8 close(4</d/b>) = ?",
            '9 unlink("/d/c" <unfinished ...>',
        )
    )
    assert [(call.thread, call.name, call.result, call.is_hit) for call in calls] == [
        ("8", "fsync", -1, True),
        ("7", "write", 2, False),
        ("8", "close", None, True),
        ("9", "unlink", None, True),
    ]
    assert calls[1].strings() == [b"xy"]
    assert [call.paths() for call in calls] == [["/d/b"], ["/d/a"], ["/d/b"], ["/d/c"]]


def test_paths_are_joined_to_the_descriptor_before_them() -> None:
    (call,) = strace_log.parse(_lines('7 renameat(5</d>, "a/../b", AT_FDCWD</e>, "/f") = 0'))
    assert call.named_paths() == ["/d/b", "/f"]


def test_record_follows_descriptors_and_leaves_out_what_is_outside_or_failed() -> None:
    calls = strace_log.parse(
        _lines(
            '7 openat(AT_FDCWD</>, "/d/tmp", O_RDWR|O_CREAT, 0666) = 3</d/tmp>',
            '7 write(3</d/tmp>, "head", 4) = 4',
            '7 pwrite64(3</d/tmp>, "--tail", 6, 2) = 6',
            "7 lseek(3</d/tmp>, 0, SEEK_SET) = 0",
            '7 write(3</d/tmp>, "H", 1) = 1',
            "7 ftruncate(3</d/tmp>, 7) = 0",
            '7 openat(AT_FDCWD</>, "/other", O_WRONLY) = 4</other>',
            '7 write(4</other>, "no", 2) = 2',
            "7 fsync(3</d/tmp>) = 0",
            '7 rename("/d/tmp", "/d/data") = 0',
            '7 unlink("/d/data") = -1 EPERM (Operation not permitted)',
            '7 mkdir("/d/sub", 0777) = 0',
            '7 link("/d/data", "/d/sub/again") = 0',
        )
    )
    recording, not_understood = strace_log.record(calls, "/d")
    tree = final_tree(recording)
    assert dict(tree.files) == {"data": b"He--tai", "sub/again": b"He--tai"}
    assert tree.directories == ("sub",)
    assert not not_understood


def test_record_names_what_it_does_not_understand() -> None:
    calls = [Call("7", "symlink", f'"{_hex("/x")}", "{_hex("/d/link")}"', 0), Call("7", "symlink", '"", ""', 0)]
    assert strace_log.record(calls, "/d")[1] == ["symlink"]


# ---- verdicts


@pytest.mark.parametrize(
    ("finding", "violated"),
    [
        (Finding(latest=2, content=2, good=[1, 2]), set()),
        (Finding(latest=3, content=3, good=[2, 3]), set()),
        (Finding(latest=2, content="bytes of w", good=[1, 2]), {"SILENT"}),
        (Finding(latest=1, content=1, good=[1]), {"LOST"}),
        (Finding(good=[]), {"LOST"}),
        (Finding(raised=Raised("OSError", ["OSError"], "no")), {"AVAIL"}),
        (Finding(latest=2, content=2, good=[2], bad=[1]), {"LISTBAD", "RETAIN"}),
        (Finding(latest=3, content=3, good=[3]), {"RETAIN"}),
        (Finding(latest=2, content=2, good=[1, 2], resume="OSError: no", leftovers=["x"]), {"RESUME", "LITTER"}),
        (Finding(hung_secs=8.0), {"HANG"}),
        (Finding(died_of=11), {"CRASH"}),
        (Finding(died_of=0), {"CRASH"}),
    ],
)
def test_judge_names_what_a_finding_violates(finding: Finding, violated: set[str]) -> None:
    assert set(judge(finding, Promise([1, 2], in_flight=3), keep=2)) == violated


def test_leftovers_are_a_violation_where_an_adapter_has_to_sweep() -> None:
    tally = Tally("")
    litter: Violations = {"LITTER": "tmp"}
    tally.add(litter)
    assert tally.failed == 0
    assert command_line.violations(tally, "kill", sweeps=True) == {"LITTER": 1}
    assert command_line.violations(tally, "kill", sweeps=False) == {}
    assert command_line.violations(tally, "ext4", sweeps=True) == {}


def test_command_line_without_strace_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert command_line.main(["--only", "kill"]) == 2
    assert "apt-get install strace" in capsys.readouterr().err


def test_command_line_with_an_unknown_class_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    if why_no_strace() is not None:
        pytest.skip("without strace it does not come to that")
    assert command_line.main(["--only", "kil"]) == 2
    assert "there are kill, inject" in capsys.readouterr().err

"""The benchmark works: its figures on known numbers, its tables and chart on made-up results, and a run of toy size."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from pathlib import Path

import pytest

from benchmarks import comparison, figures, files, modes, report, tables, tensorflow_reading, workloads
from benchmarks.__main__ import main
from benchmarks.chart import ChartError, draw_chart, panels
from benchmarks.errors import PeerError
from benchmarks.peers import ENTRIES
from benchmarks.results import Reading, Results, Role, Row, WorkloadResult
from benchmarks.settings import find_interpreter

# ---- figures


def test_median_is_the_middle_sample_and_nan_of_none() -> None:
    assert figures.median([9.0, 1.0, 2.0]) == 2.0
    assert figures.median([1.0, 2.0, 3.0, 10.0]) == 2.5
    assert math.isnan(figures.median([]))


def test_growth_is_the_line_through_the_medians_and_leaves_out_sizes_without_samples() -> None:
    line = figures.growth([1, 2, 3, 4], [[5.0, 5.0, 99.0], [7.0], [], [11.0, 0.0, 12.0]])
    assert line == pytest.approx((2.0, 3.0))


def test_growth_of_one_size_is_unknown() -> None:
    assert all(map(math.isnan, figures.growth([1.0, 2.0], [[5.0], []])))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00123, "0.0012"),
        (0.01234, "0.0123"),
        (1.2345, "1.23"),
        (9.999, "10.0"),
        (12.345, "12.3"),
        (1234.5, "1,234"),
        (math.nan, "-"),
    ],
)
def test_numbers_have_three_digits_that_matter(value: float, text: str) -> None:
    assert tables.number(value) == text


# ---- comparisons and tables


def _reading(*seconds: float) -> Reading:
    return {"seconds": list(seconds), "cpu": list(seconds), "memory": {"rss": 3_000_000, "anonymous": 1_000_000}}


def _row(peer: str, role: Role, seconds: float, *, label: str = "", is_into_existing: bool = True) -> Row:
    return {
        "peer": peer,
        "role": role,
        "version": "1.0",
        "save": {
            "call": [seconds / 2],
            "durable": [seconds, seconds * 3, seconds],
            "cpu": [seconds],
            "memory": {"rss": 17_000_000, "anonymous": 16_000_000},
            "size": 1_000_000,
        },
        "restores": [
            {
                "label": label,
                "is_into_existing": is_into_existing,
                "is_correct": None if role == "limit" else True,
                "cold": _reading(seconds * 2),
                "warm": _reading(seconds / 10),
            }
        ],
    }


def _workload(name: str = "fp32") -> WorkloadResult:
    return {
        "name": name,
        "title": "a model",
        "tensors": 12,
        "bytes": 1_000_000,
        "rows": [
            _row("limit", "limit", 1.0, is_into_existing=False),
            _row("torchsaver", "ours", 1.5, label="verify=True"),
            _row("safetensors", "peer", 3.0),
            _row("torch.save", "peer", 6.0),
            _row("Orbax", "peer", 1.2, label="new arrays", is_into_existing=False),
        ],
        "skipped": {"TF Saver": "BENCH_TF_PYTHON is not set"},
    }


def _results(*made: WorkloadResult) -> Results:
    return {
        "date": "2026-01-01 00:00",
        "mode": "quick",
        "repetitions": 3,
        "machine": "1 x processor",
        "versions": {"torch": "2.0"},
        "cold_means": "sync and drop_caches",
        "load_before": 0.5,
        "seconds": 60.0,
        "workloads": list(made),
        "growth": [
            {
                "unit": "tensor",
                "title": "growth with the number of tensors",
                "sizes": [1000.0, 2000.0],
                "rows": [{"peer": "torchsaver", "role": "ours", "save": [[0.011], [0.021]], "restore": [[0.1], [0.1]]}],
                "skipped": {},
            }
        ],
        "toy": {
            "repeats": 50,
            "rows": [
                {
                    "peer": "torchsaver",
                    "role": "ours",
                    "torch_import": [0.5, 1.5],
                    "imports": [1.0, 3.0],
                    "first_save": [0.25, 0.25],
                    "first_restore": [0.5, 0.5],
                    "repeat_save": [0.005, 0.007],
                    "repeat_restore": [0.001, 0.001],
                    "durable_save": [0.005, 0.007],
                    "memory_save": [0.0005, 0.0005],
                    "memory_file": [0.0005, 0.0005],
                    "memory_bytes": [0.00025, 0.00025],
                    "memory_restore": [0.0005, 0.0005],
                }
            ],
            "skipped": {},
        },
        "imports": {"torch": [1.0], "torchsaver": [0.0625], "empty_process": [0.02], "inspect_process": [1.5]},
    }


def test_best_peer_is_neither_ours_nor_the_limit_and_restores_into_existing_values() -> None:
    best = comparison.best_peer(comparison.timings(_workload(), "cold"))
    assert best is not None
    assert (best.peer, best.median) == ("safetensors", 6.0)


def test_best_peer_of_saves_is_the_fastest_one() -> None:
    best = comparison.best_peer(comparison.timings(_workload(), "save"))
    assert best is not None
    assert best.peer == "Orbax"


def test_best_of_each_peer_is_its_fastest_way() -> None:
    workload = _workload()
    workload["rows"].append(_row("safetensors", "peer", 2.0, label="another way"))
    names = [timing.name for timing in comparison.best_of_each(comparison.timings(workload, "warm"))]
    assert names == ["limit", "Orbax new arrays", "torchsaver verify=True", "safetensors another way", "torch.save"]


def test_ratio_without_a_reference_is_unknown() -> None:
    assert math.isnan(comparison.ratio(1.0, None))
    assert math.isnan(comparison.ratio(1.0, math.nan))


def test_report_has_ratios_of_medians_to_the_limit_to_the_best_peer_and_to_safetensors() -> None:
    text = report.format_report(_results(_workload()))
    assert "| **torchsaver** | 1.50 | 1.50-4.50 | 1.50 | 1.25 | 0.50 | 1.50 | 17 | 16 |" in text
    assert (
        "| fp32 | cold restore | **torchsaver verify=True** | 3.00 | 1.50 | 0.50 | safetensors | 6.00 | 0.50 |" in text
    )


def test_report_says_who_was_left_out_and_why() -> None:
    assert "TF Saver was left out: BENCH_TF_PYTHON is not set." in report.format_report(_results(_workload()))


def test_report_has_slopes_toy_and_imports() -> None:
    text = report.format_report(_results())
    assert "| torchsaver | 10.0 | 1.00 | 0.0110, 0.0210 |" in text
    assert (
        "| torchsaver | 2,000 | 250 | 500 | 2,750 | 1,750 | 6.00 | 1.00 | 6.00 | 0.500 | 0.500 | 0.250 | 0.500 |"
        in text
    )
    assert "| `import torchsaver` after it | 62.5 | 62.5-62.5 |" in text


def test_report_without_limit_or_peers_leaves_ratios_out() -> None:
    workload = _workload()
    workload["rows"] = workload["rows"][1:2]
    assert "| **torchsaver** | 1.50 | 1.50-4.50 | - | - | - |" in report.format_report(_results(workload))


def test_report_marks_wrong_values() -> None:
    workload = _workload()
    workload["rows"][2]["restores"][0]["is_correct"] = False
    assert report.format_report(_results(workload)).count("safetensors WRONG VALUES") == 2


# ---- chart


def test_panels_have_everybody_but_the_limit_in_multiples_of_it() -> None:
    save, cold, warm = panels(_workload())
    assert [(bar.name, bar.times_limit) for bar in save.bars] == [
        ("Orbax", pytest.approx(1.2)),
        ("torchsaver", 1.5),
        ("safetensors", 3.0),
        ("torch.save", 6.0),
    ]
    assert cold.bars[0].name == "Orbax (new arrays)"
    assert [bar.is_ours for bar in warm.bars] == [False, True, False, False]


def test_panels_without_the_limit_are_none() -> None:
    workload = _workload()
    del workload["rows"][0]
    assert panels(workload) == []


def test_chart_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the chart needs matplotlib: make bench installs it")
    path = tmp_path / "new" / "chart.png"
    draw_chart(_results(_workload("fp32"), _workload("small")), str(path))
    assert path.read_bytes().startswith(b"\x89PNG")


def test_chart_without_matplotlib_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(ChartError, match="matplotlib is not installed"):
        draw_chart(_results(_workload()), str(tmp_path / "chart.png"))


# ---- what is run


def test_every_mode_runs_known_parts_of_known_peers() -> None:
    for name, mode in modes.MODES.items():
        assert set(mode.peers) <= set(modes.PARTS), name
        assert {peer for peers in mode.peers.values() for peer in peers} <= set(ENTRIES), name


def test_full_workloads_have_the_sizes_that_the_results_are_of() -> None:
    sizes = {}
    for each in workloads.SIZES["full"].workloads():
        elements = sum(math.prod(shape) for shape in each.shapes.values())
        sizes[each.name] = elements * (2 if each.dtype == "bfloat16" else 4) * (3 if each.has_moments else 1) / 1e9
    assert [round(sizes[name], 1) for name in ("fp32", "bf16", "adam")] == [1.5, 1.5, 0.6]
    assert len(workloads.find_workload("small", "full").shapes) == 20_000


def test_interpreter_that_is_not_given_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCH_TF_PYTHON", raising=False)
    with pytest.raises(PeerError, match="BENCH_TF_PYTHON is not set"):
        find_interpreter("tensorflow")
    monkeypatch.setenv("BENCH_TF_PYTHON", "/nowhere/python")
    with pytest.raises(PeerError, match="there is no /nowhere/python"):
        find_interpreter("tensorflow")


def test_fsync_all_syncs_every_file_and_every_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x" / "deep").mkdir(parents=True)
    (tmp_path / "x" / "deep" / "a").write_bytes(b"1")
    (tmp_path / "x" / "b").write_bytes(b"22")
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    files.fsync_all(str(tmp_path / "x"))
    assert sorted(synced) == sorted(str(tmp_path / name) for name in ("", "x", "x/b", "x/deep", "x/deep/a"))
    assert files.size_of(str(tmp_path / "x")) == 3


# ---- a run


@pytest.mark.skipif(platform.system() != "Linux", reason="the benchmark needs /proc and O_DIRECT")
def test_run_of_toy_size_times_and_checks_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results_path = tmp_path / "results.json"
    arguments = ["--mode", "smoke", "--workloads", "strided", "--peers", "torchsaver,safetensors", "--as-found"]
    paths = ["--dir", str(tmp_path / "files"), "--json", str(results_path), "--chart", str(tmp_path / "chart.png")]
    assert main([*arguments, *paths]) == 0
    (workload,) = json.loads(results_path.read_text())["workloads"]
    assert workload["skipped"] == {}
    assert [row["peer"] for row in workload["rows"]] == ["torchsaver", "safetensors"]
    for row in workload["rows"]:
        assert row["save"]["size"] > workload["bytes"]
        assert len(row["save"]["durable"]) == 1
        assert row["restores"]
        assert all(restore["is_correct"] for restore in row["restores"])
        assert all(restore[how]["seconds"][0] > 0 for restore in row["restores"] for how in ("cold", "warm"))
    assert "| strided | durable save | **torchsaver** |" in capsys.readouterr().out
    assert not [name for name in os.listdir(tmp_path / "files") if not name.endswith(".log")]


def test_reading_tensorflow_s_checkpoints_prints_medians_and_their_ratio() -> None:
    found = {"read": {"TensorFlow": [0.4, 0.2, 0.3], "torchsaver": [0.1, 0.15, 0.2]}}
    assert tensorflow_reading.table(found)[-1] == "| read | 150.0 (100.0-200.0) | 300.0 (200.0-400.0) | 0.50 |"


def test_reading_tensorflow_s_checkpoints_is_timed_in_a_fresh_process(tmp_path: Path) -> None:
    prefixes = tensorflow_reading.make_checkpoints(str(tmp_path), scale=0.002)
    times = tensorflow_reading.run("torchsaver", prefixes)
    assert set(map(len, times.values())) == {tensorflow_reading.CALLS}
    assert "read 1 GB" in times

"""Files by the grammar, damaged where it hurts, checksums right again: a documented error or a faithful round trip.

The same generators and checks run for hours under `make fuzz`; what that has found is replayed here.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from faults.fuzz.choices import ByteChoices, HypothesisChoices
from faults.fuzz.targets import TARGETS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FINDINGS = sorted((Path(__file__).parent / "fuzz" / "findings").glob("*.bin"))
THOUSANDS = {
    "safetensors": 8000,
    "manifest": 2000,
    "index": 3000,
    "state": 5000,
    "statefile": 500,
    "directory": 200,
    "tfbundle": 600,
    "tfv1": 600,
    "tfgraph": 4000,
}
EXAMPLES = {
    "safetensors": 150,
    "manifest": 150,
    "index": 150,
    "state": 200,
    "statefile": 60,
    "directory": 40,
    "tfbundle": 60,
    "tfv1": 60,
    "tfgraph": 150,
}


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", logger="torchsaver")


def _settings(count: int) -> settings:
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    return settings(max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=checks)


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_document_is_a_documented_error_or_survives_a_round_trip(name: str) -> None:
    target = TARGETS[name]

    @_settings(EXAMPLES[name])
    @given(st.data())
    def check(data: st.DataObject) -> None:
        target.check(target.make(HypothesisChoices(data.draw)))

    check()


@pytest.mark.parametrize("name", TARGETS)
def test_thousands_of_random_documents_are_documented_errors_or_survive_a_round_trip(name: str) -> None:
    random = Random(name)
    for _ in range(THOUSANDS[name]):
        TARGETS[name].check(TARGETS[name].make(ByteChoices(random.randbytes(200))))


@pytest.mark.parametrize("name", ["safetensors", "manifest", "index", "state", "tfgraph"])
def test_document_of_any_bytes_is_a_documented_error_or_survives_a_round_trip(name: str) -> None:
    @_settings(200)
    @given(st.binary(max_size=300))
    def check(document: bytes) -> None:
        TARGETS[name].check(document)

    check()


@pytest.mark.parametrize("name", TARGETS)
def test_generator_makes_documents_that_are_taken_and_ones_that_are_not(name: str) -> None:
    taken = {TARGETS[name].check(TARGETS[name].make(ByteChoices(bytes([seed] * 40)))) for seed in range(128)}
    assert taken == {True, False}


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.stem)
def test_finding_of_the_fuzzer_is_fixed(path: Path) -> None:
    TARGETS[path.stem.split("-")[0]].check(path.read_bytes())

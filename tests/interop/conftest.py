"""Without an interpreter that has TensorFlow, which `make interop` names in TF_PYTHON, there are no tests here."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from interop.peer import TensorFlow

PYTHON = os.environ.get("TF_PYTHON", "")
collect_ignore_glob = [] if PYTHON else ["test_*.py"]


@pytest.fixture(scope="session")
def tensorflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TensorFlow]:
    with TensorFlow(PYTHON, tmp_path_factory.mktemp("tensorflow") / "log") as peer:
        yield peer

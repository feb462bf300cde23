# make demo    set everything up in .venv and run the main job: save, be killed, resume, bit-identical
# make test    set everything up in .venv and run the tests
# make check   format, lint, types and tests, as CI does

PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check format clean

demo: .venv/installed
	$(BIN)/python examples/tf_guide.py
	$(BIN)/python examples/train_digits.py

test: .venv/installed
	$(BIN)/python -m pytest

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

# torch is pinned first: 2.13.0 is to be had as a CPU build, and an unpinned one brings gigabytes of CUDA.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[dev,examples]'
	touch $@

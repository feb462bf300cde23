# make demo    set everything up in .venv and run the main job: save, be killed, resume, bit-identical
# make test    set everything up in .venv and run the tests
# make check   format, lint, types and tests, as CI does
# make fuzz    fuzz every reader of files with atheris: 10 minutes, or SECONDS=7200
# make faults  faults at system calls of real processes, a sample in three minutes; needs strace (tests/faults/README.md)
# make faults-full [SEED=1]   all of them, in three quarters of an hour
# make interop   with real TensorFlow, which it installs for itself the first time (tests/interop/README.md)
# make bench   beside other libraries and the machine's limits, small models in two minutes (tests/benchmarks/README.md)
# make bench-full   the models that the results in the README are of, in 25 minutes; root makes files cold for certain
# make bench-background   how long a save in the background blocks, beside a plain copy and PyTorch's async_save: two minutes
# make bench-tensorflow   reading TensorFlow's checkpoints beside TensorFlow; BENCH_TF_PYTHON names a Python that has it

PYTHON ?= python3
BIN := .venv/bin
SECONDS ?= 600
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check lint faults faults-full fuzz interop bench bench-full bench-background bench-tensorflow format clean

demo: .venv/installed
	$(BIN)/python examples/tf_guide.py
	$(BIN)/python examples/train_digits.py
	$(BIN)/python examples/full_resume.py

PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

test: .venv/installed
	$(PYTEST)

check: lint
	$(PYTEST)

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

FAULTS := PYTHONPATH=tests $(BIN)/python -m faults.syscalls
SEED ?= 1
# What shows that the harness itself works: one careful protocol is clean, two careless ones are not.
define CONTROLS
	$(FAULTS) --adapter careful --only kill,inject,first,sigint,powerloss
	$(FAULTS) --adapter naive --only kill,powerloss --expect-violations
	$(FAULTS) --adapter overwriting --only kill,inject --expect-violations
endef

faults: .venv/installed
	$(CONTROLS)
	$(FAULTS) --adapter torchsaver --seed $(SEED)
	$(FAULTS) --adapter torchsaver-resume --only kill,inject,powerloss,readinject --seed $(SEED)
	$(FAULTS) --adapter torchsaver-sharded --only kill,inject,first,powerloss --seed $(SEED)
	$(FAULTS) --adapter torchsaver-background --only kill,powerloss --seed $(SEED)

faults-full: .venv/installed
	$(CONTROLS)
	$(FAULTS) --adapter torchsaver --mode full --seed $(SEED)
	$(FAULTS) --adapter torchsaver-resume --mode full --seed $(SEED)
	$(FAULTS) --adapter torchsaver-sharded --mode full --seed $(SEED)
	$(FAULTS) --adapter torchsaver-background --only kill,powerloss --mode full --seed $(SEED)

fuzz: .venv/fuzz
	cd tests && ../$(BIN)/python -m faults.fuzz --seconds $(SECONDS) --output ../build/fuzz

ifdef TF_PYTHON
interop: .venv/installed
else
TF_PYTHON := build/interop/bin/python
interop: .venv/installed build/interop/installed
endif
interop:
	TF_PYTHON=$(abspath $(TF_PYTHON)) $(BIN)/python -m pytest --verbose tests/interop

bench: .venv/bench
	PYTHONPATH=tests $(BIN)/python -m benchmarks --mode quick

bench-background: .venv/bench
	PYTHONPATH=tests $(BIN)/python -m benchmarks.background_saves

bench-tensorflow: .venv/bench
	PYTHONPATH=tests $(BIN)/python -m benchmarks.tensorflow_reading

bench-full: .venv/bench
	PYTHONPATH=tests $(BIN)/python -m benchmarks --mode full

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

.venv/bench: .venv/installed
	$(BIN)/pip install --quiet --editable '.[bench]'
	touch $@

.venv/fuzz: .venv/installed
	$(BIN)/pip install --quiet --editable '.[fuzz]'
	touch $@

# Without torch, as .venv is without TensorFlow: so neither can have had the other's help.
build/interop/installed: tests/interop/requirements.txt
	$(PYTHON) -m venv build/interop
	build/interop/bin/pip install --quiet --requirement $<
	touch $@

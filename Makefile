# make demo and make test are all that a fresh machine needs; one virtual environment, reused if it is there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO ?= nnunet_ext_demo
# Tests run side by side on two cores, so each process keeps to one thread. Commands of nnU-Net set the threads
# themselves, and threads that spin while they wait are slow on a machine that others use too.
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: help setup demo test test-all checked unit integration lint types fix check bench bench-accuracy clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*##/\t/' | expand -t 18

setup: $(STAMP)  ## make the virtual environment and install the plugin with its development tools

$(STAMP): pyproject.toml hatch_build.py nnunet_ext.pth
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

demo: $(STAMP)  ## phantoms, two trainings with the stock commands, and a report in $(DEMO)
	$(BIN)/nnUNetv2_ext demo -o $(DEMO)

test: checked unit integration  ## lint, types, unit and integration tests

test-all: checked unit  ## the slow ones as well
	$(PYTEST) -m "(integration or slow) and not gpu"

checked: $(STAMP)
	$(MAKE) -j2 lint types

unit: $(STAMP)  ## unit tests alone
	$(PYTEST) -m "not integration and not slow and not gpu"

integration: $(STAMP)  ## tests that drive the stock commands
	$(PYTEST) -m "integration and not slow"

lint: $(STAMP)  ## ruff and codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell nnunet_ext tests benchmarks docs README.md CHANGELOG.md CONTRIBUTING.md

types: $(STAMP)  ## mypy
	$(BIN)/mypy

fix: $(STAMP)  ## format, and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: test  ## the same as test

bench: $(STAMP)  ## quick measurements, under ten minutes
	$(BIN)/python benchmarks/startup.py
	cd benchmarks && ../$(BIN)/python step.py --small --pairs 30
	cd benchmarks && ../$(BIN)/python loading.py
	cd benchmarks && ../$(BIN)/python memory.py

bench-accuracy: $(STAMP)  ## trainings on real data (NNUNET_EXT_DATA), hours on a CPU, resumable
	$(BIN)/python benchmarks/accuracy.py run
	$(BIN)/python benchmarks/accuracy.py report

clean:  ## remove what was built; the virtual environment and the demo stay
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

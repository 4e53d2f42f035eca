# `make demo` and `make test` do everything on a fresh machine with Python >= 3.11: environment, installation, run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test test-range test-wheel lint docs bench clean

help:
	@echo "make demo   compare pruners on the model in the package, in a minute; writes demo/index.html"
	@echo "make test   run the tests"
	@echo "make test-range  hosts and pruning against the lowest and the newest transformers"
	@echo "make test-wheel  build the package, install it into an empty environment, follow the README there"
	@echo "make lint   ruff and pyright"
	@echo "make docs   build the documentation to site/"
	@echo "make bench  run the benchmarks at the sizes this machine can hold"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed, this is " + sys.version.split()[0])'
	@echo "1 of 3: an environment in $(VENV)/ (once; the next make goes straight to work)"
	@$(PYTHON) -m venv $(VENV)
	@echo "2 of 3: torch, the largest part; a few minutes, most of them download"
	@$(BIN)/pip install --disable-pip-version-check -c constraints.txt torch==2.13.0
	@echo "3 of 3: the other packages, then tokenry itself"
	@$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

# Threads that wait do not spin (OMP_WAIT_POLICY): on a busy machine that is three times faster.
demo: $(READY)
	@echo "comparing pruners on the model in the package, less than a minute"
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/tokenry compare pruning --out demo
	@echo "open demo/index.html in a browser"

test: $(READY)
	OMP_NUM_THREADS=1 TOKENRY_OFFLINE=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-range: $(READY)
	JOBS=$(JOBS) tools/test_range.sh

test-wheel: $(READY)
	$(BIN)/python -m pytest --slow tests/test_wheel.py -v

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(READY)
	$(BIN)/mkdocs build --strict

bench: $(READY)
	for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) .venv-range site demo compare .pytest_cache .ruff_cache .hypothesis

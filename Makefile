# Everything on a machine that has Python 3.11 or newer and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STUDY ?= studies/quickstart.yaml
JOBS ?= 2

FAULTS ?= 200
SEED ?= 0

.PHONY: help install quickstart test test-cluster chaos lint lock clean

help:
	@echo "make quickstart  install, run $(STUDY), show its table"
	@echo "make test        install, run the tests, $(JOBS) at a time"
	@echo "make chaos       install, let $(FAULTS) faults loose on studies, show what they cost (about 2 hours)"
	@echo "make test-cluster  install, test docker/compose.yaml's cluster without Docker (needs root)"
	@echo "make lint        format check, ruff, mypy, import-linter"
	@echo "make lock        resolve requirements.lock anew"

install: $(VENV)/installed

# uv itself comes by pip; the lock pins the rest by hash; the project is installed editable.
$(VENV)/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(0 if sys.version_info >= (3, 11) else f"Python must be 3.11 or newer, got {v}. Name one: make PYTHON=python3.11")'
	test -x $(BIN)/uv || { $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet --disable-pip-version-check uv; }
	$(BIN)/uv pip install --python $(BIN)/python --quiet --require-hashes -r requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation --editable .
	touch $@

quickstart: install
	$(BIN)/ablation run $(STUDY)
	@echo "See the runs side by side: $(BIN)/ablation ui"

test: install
	$(BIN)/python -m pytest --numprocesses=$(JOBS) --dist=loadgroup

chaos: install
	CHAOS_FAULTS=$(FAULTS) CHAOS_SEED=$(SEED) $(BIN)/python -m pytest -m chaos -s tests/chaos

test-cluster: install
	TEST_CLUSTER=1 $(BIN)/python -m pytest tests/cluster

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lock: install
	$(BIN)/uv pip compile pyproject.toml --extra train --extra server --group dev --universal \
	  --python-version 3.11 --generate-hashes --no-annotate --no-header --upgrade \
	  --output-file requirements.lock

clean:
	rm -rf $(VENV) ablation-results

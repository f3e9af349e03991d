# Two commands are all there is to set up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test fuzz long check lint format bench clean

demo: $(VENV)/.offline  ## install with the offline weights and run the whole tour
	$(BIN)/medtl demo

test: $(VENV)/.dev  ## install what the tests need and run them
	$(BIN)/python -m pytest -n 2

fuzz: $(VENV)/.dev  ## 10,000 mutated DICOM files, read or refused: some minutes
	$(BIN)/python -m pytest -n 2 -m long tests/fuzz

long: $(VENV)/.dev  ## the contract of every backbone, the large ones too: some ten minutes
	$(BIN)/python -m pytest -n 2 -m long tests/models tests/training

check: lint test  ## what CI runs

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev  ## the numbers of the README, by hand: some 40 minutes on two cores
	$(BIN)/python -m benchmarks.main_job

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.offline: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[offline]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[offline,dev]'
	touch $(VENV)/.offline $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

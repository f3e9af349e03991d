# `make demo` and `make test` install everything they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test fuzz long check lint docs format bench clean

demo: $(VENV)/.offline  ## install with the offline weights and run the whole tour
	$(BIN)/medtl demo

test: $(VENV)/.dev  ## install what the tests need and run them
	$(BIN)/python -m pytest -n 2 --dist worksteal

fuzz: $(VENV)/.dev  ## 10,000 mutated DICOM files and thousands of other formats, read or refused: several minutes
	$(BIN)/python -m pytest -n 2 -m long tests/fuzz

long: $(VENV)/.dev  ## the contract tests of every backbone, the large ones too: about ten minutes
	$(BIN)/python -m pytest -n 2 -m long tests/models tests/training

check: lint docs test  ## what CI runs

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.dev  ## the documentation site, in site/; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev  ## the numbers in README, run by hand: about 40 minutes on two cores
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
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

# The only door: `make` alone says what there is.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests start real daemons; two at a time fit two cores. Those that measure the CPU share a group and run one by one.
# Without the suites that load the machine: tracing would be what they measure.
MEASURED := tests/*.py $(wildcard tests/[!s]*/) $(addprefix tests/system/test_, \
	commands.py ending.py limits.py log.py reload.py startup.py stop.py)
FUZZ ?= 60
PYTEST := $(BIN)/python -X dev -m pytest -n 2 --dist loadgroup

.DEFAULT_GOAL := help
.PHONY: help run test coverage storm format lint types check clean

help: ## show the targets
	@sed -n 's/^\([a-z]*\):.*## /  \1	/p' $(MAKEFILE_LIST) | expand -t 14

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable . --group dev
	touch $(STAMP)

run: $(STAMP) ## run echod in the foreground: ^C drains, ^C again stops
	@exec $(BIN)/echod run

test: $(STAMP) ## run the tests, a few minutes
	$(PYTEST)

storm: $(STAMP) ## run the long forms of tests, some twenty minutes; FUZZ=3600 fuzzes for longer than a minute each
	$(BIN)/python -X dev -m pytest --storm --fuzz $(FUZZ) --timeout $$(($(FUZZ) + 900)) -rP

coverage: $(STAMP) ## measure branch coverage, in all processes; fails below 95 %
	rm -f .coverage .coverage.*
	ECHOD_TEST_SCALE=4 $(BIN)/python -m coverage run -m pytest -n 2 --dist loadgroup --timeout 300 $(MEASURED)
	find . -maxdepth 1 -name '.coverage.*' -empty -delete  # of a process that was killed as it began to write
	-$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --fail-under=95

format: $(STAMP) ## lay out the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(STAMP) ## look for mistakes and untidiness
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## check the types, strictly
	$(BIN)/mypy

check: lint types test coverage ## all gates

clean: ## remove all that was made
	rm -rf $(VENV) build dist htmlcov .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each of these works from a bare checkout with nothing but python3 and make.
#   make run     install, then serve SOCKS5 on 127.0.0.1:1080
#   make test    install what the tests need (Debian packages too, as root), then all tests
#   make lint    ruff and mypy
#   make bench   tabi beside other servers on this machine; writes benchmarks/results.md

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: run test lint format bench clean

run: $(VENV)/installed
	$(BIN)/tabi serve $(ARGS)

test: $(VENV)/dev
	$(BIN)/python tests/debian.py
	$(BIN)/python -m pytest $(ARGS)
	$(BIN)/python tests/coverage_of_rooms.py

lint: $(VENV)/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/dev
	$(BIN)/python benchmarks/run.py $(ARGS)

clean:
	rm -rf $(VENV) .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache dist

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/dev: pyproject.toml tests/requirements.py | $(VENV)/installed
	$(BIN)/python tests/requirements.py | xargs -d '\n' $(BIN)/python -m pip install --quiet --disable-pip-version-check
	touch $@

# Each of these works from a bare checkout with nothing but python3 and make.
#   make run     install, then serve SOCKS5 on 127.0.0.1:1080
#   make test    install what the tests need (Debian packages too, as root), then all tests
#   make lint    ruff and mypy
#   make bench   tabi beside other servers on this machine; writes benchmarks/results.md

# Distributions build their Python with profile-guided optimisation, version managers without it: that is a fifth of the
# CPU of a connection. So python3 if it was built that way, else the system's if it will do, else python3 all the same.
PYTHON ?= $(shell \
	python3 -c 'import sysconfig as s; assert "--enable-optimizations" in s.get_config_var("CONFIG_ARGS")' 2>/dev/null \
	&& echo python3 && exit; \
	/usr/bin/python3 -c 'import ensurepip, sys; assert sys.version_info >= (3, 11)' 2>/dev/null \
	&& echo /usr/bin/python3 || echo python3)
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

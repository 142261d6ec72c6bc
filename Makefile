# Each of these works from a bare checkout with nothing but python3 and make.
#   make run            install, then serve SOCKS5 on 127.0.0.1:1080
#   make test           install what the tests need (Debian packages too, as root), then the tests
#   make test-deep      the same tests with all hostings, all products and more examples: some tens of minutes
#   make test-portable  the tests of servers, clients and datagrams without all that Linux alone offers
#   make test-services  the tests that need a daemon of others, such as Redis or LDAP
#   make lint           ruff and mypy
#   make man            the manual pages and the completion of shells, in dist/man and dist/completion
#   make bench          tabi beside other servers on this machine; writes benchmarks/results.md

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

# The tests run in that many processes. One that sleeps leaves its core to another, so it is not fewer than two.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -gt 2 ] && echo $$n || echo 2)
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
MEASURED := .cache/coverage
PORTABLE := tests/client tests/relay/test_associations.py tests/server/test_server.py tests/test_conformance.py

# Without its bytecode each program that a test starts takes twice as long to come up, and each process that runs tests
# compiles all of them: both have to be kept, also where the environment says otherwise.
export PYTHONDONTWRITEBYTECODE =

.PHONY: run test test-deep test-portable test-services lint format man bench clean

run: $(VENV)/installed
	$(BIN)/tabi serve $(ARGS)

# With ARGS only what they name, and none of the checks that need all tests.
test: $(VENV)/dev
	$(BIN)/python tests/debian.py
ifneq ($(strip $(ARGS)),)
	$(PYTEST) -m "not services" $(ARGS)
else
	rm -rf $(MEASURED) && mkdir -p $(MEASURED)
	TABI_COVERAGE=$(MEASURED) $(PYTEST) -m "not services"
	$(BIN)/python tests/coverage_of_rooms.py $(MEASURED)
	$(BIN)/python tests/pythons.py
endif

test-deep: export TABI_TESTS = deep
test-deep: PYTEST += --timeout 180
test-deep: test

# Without epoll, splice, files in memory, batches of datagrams, netlink and so on: see tests/sandbox.py.
test-portable: export TABI_TESTS = portable
test-portable: $(VENV)/dev
	$(PYTEST) -m "not services and not interop and not linux" $(or $(ARGS),$(PORTABLE))

# pytest ends with 5 where no test has the marker: then there is nothing that could fail.
test-services: $(VENV)/dev
	$(BIN)/python tests/debian.py
	$(BIN)/python -m pytest -m services $(ARGS) || [ $$? -eq 5 ]

lint: $(VENV)/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

man: $(VENV)/installed
	$(BIN)/tabi man dist/man
	mkdir -p dist/completion
	for shell in bash zsh fish; do $(BIN)/tabi completion $$shell > dist/completion/tabi.$$shell || exit 1; done

bench: $(VENV)/dev
	$(BIN)/python benchmarks/run.py $(ARGS)

clean:
	rm -rf $(VENV) $(VENV)-3.* .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache dist

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/dev: pyproject.toml tests/requirements.py | $(VENV)/installed
	$(BIN)/python tests/requirements.py | xargs -d '\n' $(BIN)/python -m pip install --quiet --disable-pip-version-check
	touch $@

# `make demo` and `make test` set everything up on a fresh machine; the others build on them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Tests run with the versions that were tested for this Python, where there is such a list; else PyTorch alone is pinned.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
CONSTRAINTS := $(firstword $(wildcard constraints-$(VERSION).txt) constraints.txt)

# A file's tests share what they make, so each file goes to one process; tests/conftest.py puts the long ones first.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# The tests start Python hundreds of times: sources are not compiled anew each time, whatever the environment says.
unexport PYTHONDONTWRITEBYTECODE

# Of fuzzing, in all.
MINUTES ?= 5

.PHONY: demo test test-fast check fuzz kill clean

demo: $(VENV)/.base  ## enhance the shipped noisy sample and draw it before and after
	@mkdir -p out
	@$(BIN)/edgese enhance edgese/samples/noisy.flac -o out/enhanced.flac --plot --force
	@echo "listen: edgese/samples/noisy.flac, then out/enhanced.flac; look: out/enhanced.png"

test: $(VENV)/.dev  ## all tests
	$(PYTEST)

test-fast: $(VENV)/.dev  ## all but the slow ones
	$(PYTEST) -m "not slow" --durations 10

fuzz: $(VENV)/.dev  ## hostile inputs for all that reads what comes from outside: make fuzz MINUTES=30
	$(BIN)/python -m tests.fuzz.run --minutes $(MINUTES)

check: $(VENV)/.dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

MOMENTS ?= 200
kill: $(VENV)/.dev  ## kill -9 at random moments of what writes files: half an hour for 200
	$(BIN)/python -m tests.kill_moments --moments $(MOMENTS)

clean:
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.base: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[plot]'
	@touch $@

$(VENV)/.dev: $(VENV)/.base $(CONSTRAINTS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dev]'
	@touch $@

# Each target does its own set-up in .venv. `make demo` shows a model answering; `make test` passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test check bench docs clean

$(VENV)/.base: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[llama-cpp]'
	@touch $@

# PyTorch alone and first: pip must not be free to choose another build of it.
$(VENV)/.dev: $(VENV)/.base
	$(PIP) install --quiet --constraint constraints.txt torch
	$(PIP) install --quiet --constraint constraints.txt --editable '.[llama-cpp,transformers,dev]'
	@touch $@

demo: $(VENV)/.base
	@$(BIN)/python docs/demo.py

# Two at a time: most tests wait for processes. One file's tests stay together, for they share a server.
test: $(VENV)/.dev
	$(BIN)/pytest --numprocesses 2 --dist loadfile

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/reference.py --check

docs: $(VENV)/.dev
	$(BIN)/python docs/reference.py

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist

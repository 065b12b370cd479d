# Every target works on a fresh machine: it makes the environment it needs. `make` or `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
CLIENTS := .venv-clients
PORT ?= 8000
CONFIG ?=
ARGS ?=
# Processes that share the test suite. A selection runs in one: starting a second would take longer than it saves.
JOBS ?= $(if $(ARGS),0,2)

.PHONY: help
help: ## this list
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
install: $(VENV)/.ready ## the environment in .venv for development, pinned by constraints.txt

.PHONY: install-serve
install-serve: $(VENV)/.serve-ready ## the same environment with no more in it than serving needs

.PHONY: serve
serve: install-serve ## from nothing to a listening server with the demo models (PORT=, CONFIG=, ARGS=)
	$(BIN)/w2s serve --port $(PORT) $(if $(CONFIG),--config $(CONFIG)) $(ARGS)

.PHONY: deploy-local
deploy-local: install-serve ## two replicas behind nginx (PORT=, CONFIG=, ARGS="--replicas 3"); needs nginx
	$(BIN)/python -m deploy.local --port $(PORT) $(if $(CONFIG),--config $(CONFIG)) $(ARGS)

.PHONY: test
test: install ## from nothing to a green test suite, in JOBS=2 processes; in one with ARGS="tests/foo.py -k x"
	$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

.PHONY: test-fast
test-fast: install ## the suite without what starts a worker or another process, loads a real model or imports a client
	$(BIN)/python -m pytest -n $(JOBS) --fast $(ARGS)

$(VLLM)/.ready: tests/vllm/install.sh tests/vllm/constraints.txt
	PYTHON=$(PYTHON) tests/vllm/install.sh $(VLLM)

.PHONY: test-vllm
test-vllm: install $(VLLM)/.ready ## the remote path against real vLLM on this machine, which it installs (3 GB)
	TEST_VLLM=$(VLLM)/bin/vllm $(BIN)/python -m pytest -m vllm $(ARGS)

# lm-eval brings 450 MB of its own, so it gets an environment that sees ours: the same torch and transformers.
PURELIB := import sysconfig; print(sysconfig.get_path("purelib"))
$(CLIENTS)/.ready: tests/clients/lm-eval.txt $(VENV)/.ready
	$(PYTHON) -m venv $(CLIENTS)
	$(BIN)/python -c '$(PURELIB)' > "$$($(CLIENTS)/bin/python -c '$(PURELIB)')/ours.pth"
	$(CLIENTS)/bin/python -m pip install --disable-pip-version-check -c constraints.txt -r tests/clients/lm-eval.txt
	touch $@

.PHONY: test-clients
test-clients: install $(CLIENTS)/.ready ## lm-eval against this server and against transformers: the same numbers (450 MB)
	TEST_LM_EVAL=$(abspath $(CLIENTS)/bin/python) $(BIN)/python -m pytest -m clients tests/clients $(ARGS)

.PHONY: check
check: install ## lint, format, types, layering
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -q tests/test_layering.py

.PHONY: format
format: install ## mends what `check` finds in layout
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: eval
eval: install ## the paper's controlled-sentiment experiment in miniature
	$(BIN)/w2s eval sentiment $(ARGS)

.PHONY: bench
bench: install ## every speed and ratio that we promise, measured (about 25 minutes; ARGS=--quick: a few)
	$(BIN)/python -m benchmarks.bench $(ARGS)

.PHONY: load
load: install ## 1 to 32 streams at once through HTTP: throughput, latency, memory, a chart (about 2 minutes)
	$(BIN)/python -m benchmarks.load $(ARGS)

.PHONY: cost
cost: install ## what a token costs by length, rows, chunks and streams, and KV memory, beside the arithmetic (4 minutes)
	$(BIN)/python -m benchmarks.load --cost $(ARGS)

.PHONY: overload
overload: install ## four times as many requests as there is room for: who is let in keeps its latency (4 minutes)
	$(BIN)/python -m benchmarks.overload $(ARGS)

.PHONY: overlap
overlap: install ## what scoring early gains over a slow provider (about three minutes)
	$(BIN)/python -m benchmarks.overlap $(ARGS)

.PHONY: pair
pair: install ## trains the demo pair anew (about ten minutes)
	$(BIN)/python -m w2s_core.demo.train_pair $(ARGS)

.PHONY: clean
clean: ## removes the environment and what tools left behind
	rm -rf $(VENV) $(VLLM) $(CLIENTS) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

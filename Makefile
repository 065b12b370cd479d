# Every target works on a fresh machine and creates the environment that it needs. `make` or `make help` lists them.
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

.PHONY: help
help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

.PHONY: install
install: $(VENV)/.ready ## the environment in .venv, pinned by constraints.txt

.PHONY: serve
serve: install ## start a server with the demo models, from nothing (PORT=, CONFIG=, ARGS=)
	$(BIN)/w2s serve --port $(PORT) $(if $(CONFIG),--config $(CONFIG)) $(ARGS)

.PHONY: deploy-local
deploy-local: install ## start two replicas behind nginx, which must be installed (PORT=, CONFIG=, ARGS="--replicas 3")
	$(BIN)/python -m deploy.local --port $(PORT) $(if $(CONFIG),--config $(CONFIG)) $(ARGS)

.PHONY: test
test: install ## run the test suite, from nothing (ARGS= goes to pytest)
	$(BIN)/python -m pytest $(ARGS)

$(VLLM)/.ready: tests/vllm/install.sh tests/vllm/constraints.txt
	PYTHON=$(PYTHON) tests/vllm/install.sh $(VLLM)

.PHONY: test-vllm
test-vllm: install $(VLLM)/.ready ## test the remote path against real vLLM, which it installs (3 GB, ten minutes)
	TEST_VLLM=$(VLLM)/bin/vllm $(BIN)/python -m pytest -m vllm $(ARGS)

# lm-eval brings 450 MB of its own, so it gets an environment that sees ours: the same torch and transformers.
PURELIB := import sysconfig; print(sysconfig.get_path("purelib"))
$(CLIENTS)/.ready: tests/clients/lm-eval.txt $(VENV)/.ready
	$(PYTHON) -m venv $(CLIENTS)
	$(BIN)/python -c '$(PURELIB)' > "$$($(CLIENTS)/bin/python -c '$(PURELIB)')/ours.pth"
	$(CLIENTS)/bin/python -m pip install --disable-pip-version-check -c constraints.txt -r tests/clients/lm-eval.txt
	touch $@

.PHONY: test-clients
test-clients: install $(CLIENTS)/.ready ## compare lm-eval's results on this server with those on transformers (450 MB)
	TEST_LM_EVAL=$(abspath $(CLIENTS)/bin/python) $(BIN)/python -m pytest -m clients tests/clients $(ARGS)

.PHONY: check
check: install ## check lint, format, types and import borders
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
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

.PHONY: pair
pair: install ## train the demo pair (about 10 minutes)
	$(BIN)/python -m w2s_core.demo.train_pair $(ARGS)

.PHONY: clean
clean: ## remove the environments and what tools left behind
	rm -rf $(VENV) $(VLLM) $(CLIENTS) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

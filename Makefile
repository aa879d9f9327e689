# Everything runs in a virtual environment of its own; PYTHON makes it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: reproduce test conformance lint clean

# The main job: parameters and FLOPs beside the paper's.
reproduce: $(VENV)/.installed
	$(BIN)/python -m benchmarks complexity

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

# timm's own model tests on all six models.
conformance: $(VENV)/.installed-test
	$(BIN)/python tests/conformance.py

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[benchmarks]'
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@ $(VENV)/.installed

# Everything runs in a virtual environment of its own; PYTHON makes it.
PYTHON ?= python3
# Processes of the tests, a core and up to 4 GB each.
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin

.PHONY: reproduce test long fuzz conformance whole-way browser lint clean

# The main job: parameters and FLOPs beside the paper's.
reproduce: $(VENV)/.installed
	$(BIN)/python -m benchmarks complexity

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long" -n $(WORKERS) --dist loadfile

# The tests that `make test` leaves out for their time.
long: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long -n $(WORKERS)

# Odd files through the commands, others with every SEED: each must end in a success or in one line.
fuzz: $(VENV)/.installed-test
	$(BIN)/python tests/fuzz.py --count $(or $(COUNT),1000) --seed $(or $(SEED),0)

# timm's own model tests on all six models.
conformance: $(VENV)/.installed-test
	$(BIN)/python tests/conformance.py

# From a miniature dataset to published weights with timm's train.py, whose path TRAIN_PY gives: at full width, and the
# tests that need it.
whole-way: $(VENV)/.installed-test
	$(if $(TRAIN_PY),,$(error TRAIN_PY is not set: make whole-way TRAIN_PY=PATH, the train.py of timm's repository))
	$(BIN)/python tests/whole_way.py $(abspath $(TRAIN_PY))
	HIFUSE_TIMM_TRAIN_PY=$(abspath $(TRAIN_PY)) $(BIN)/python -m pytest tests/test_recipes.py tests/test_warm_start.py \
	  tests/test_whole_way.py

# The pages of report and demo in Debian's Chromium: apt-get install chromium chromium-driver. OUT keeps what there is to
# look at.
browser: $(VENV)/.installed-browser
	PYTHONPATH=$(abspath $(VENV)/browser) $(BIN)/python tests/browser.py $(if $(OUT),--out $(OUT))
	PYTHONPATH=$(abspath $(VENV)/browser) $(BIN)/python tests/browser_demo.py $(if $(OUT),--out $(OUT))

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[benchmarks,peers]'
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@ $(VENV)/.installed

# Beside the environment: gradio takes an older pillow than the tests are run with.
$(VENV)/.installed-browser: $(VENV)/.installed-test
	rm -rf $(VENV)/browser
	$(BIN)/python -m pip install --quiet --target $(VENV)/browser gradio selenium
	touch $@

# Needs make and Python 3.11 or newer; everything else is installed into .venv.

.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
.PHONY: all help demo test lint bench soak examples clean

NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach p,python3 python3.11 python3.12 python3.13 python3.14 python,\
            $(shell $(p) -c "$(NEW_ENOUGH)" >/dev/null 2>&1 && echo $(p))))
BIN    := .venv/bin
READY  := .venv/.ready
PIP     = $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
PYTEST  = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# A .venv that is half made is made anew; so is one that came along with a moved or copied tree, since
# its scripts and the editable install hold absolute paths.
BROKEN := $(shell test -f $(READY) && test -x $(BIN)/python && grep -qsF '$(CURDIR)/.venv' $(BIN)/activate || echo yes)
ifneq ($(BROKEN),)
.PHONY: $(READY)
endif

all: $(READY)
	@echo "Ready. Next: make demo, make test, or make help."

help:
	@echo "make            create .venv and install sdediff in it (later: only when something changed)"
	@echo "make demo       the main job on real data; pictures go to results/demo"
	@echo "make test       the tests, on two cores        (make test ARGS='-k reverse' for some of them)"
	@echo "make lint       ruff and mypy"
	@echo "make soak       the long statistical tests"
	@echo "make examples   every script in examples/"
	@echo "make bench      install the libraries compared with, then run the benchmarks"
	@echo "make clean      remove .venv, caches and build products; results/ stays"
	@echo "PYTHON=...      the interpreter to build .venv with"

$(READY): pyproject.toml constraints.txt
	@rm -f $@
	@python='$(PYTHON)'; \
	if ! "$$python" -c "$(NEW_ENOUGH)" 2>/dev/null; then \
	  found=$$("$${python:-python3}" --version 2>/dev/null) || found="no usable $${python:-python3}"; \
	  echo "sdediff needs Python 3.11 or newer, found: $$found. Name one: make PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	if [ -n "$(BROKEN)" ]; then \
	  echo "Creating .venv with $$("$$python" --version) (first time: about a minute, more if torch is downloaded)"; \
	  "$$python" -m venv --clear .venv; \
	else echo "Updating .venv (pyproject.toml or constraints.txt changed)"; fi
	@$(PIP) -e '.[dev,train,diffusers]' || { echo "Installing into .venv failed (see above); run make again to start afresh" >&2; exit 1; }
	@touch $@

.venv/.bench: $(READY)
	@rm -f $@
	@echo "Installing the libraries to compare with (about a minute)"
	@$(PIP) -e '.[bench]'
	@$(PIP) --no-deps azula  # without torchvision: see pyproject.toml
	@touch $@

demo: $(READY)
	@$(BIN)/sdediff demo --out results/demo

test: $(READY)
	@echo "Running the tests on two cores"
	@$(PYTEST) $(ARGS)

soak: $(READY)
	@echo "Running the long statistical tests"
	@$(PYTEST) -m soak $(ARGS)

lint: $(READY)
	@echo "Checking style and types"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

examples: $(READY)
	@for script in examples/*.py; do echo "$$script"; $(BIN)/python "$$script" || exit 1; done

bench: .venv/.bench
	@$(BIN)/python -m benchmarks $(ARGS)

clean:
	@rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

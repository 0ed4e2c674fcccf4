# Two commands do everything on a fresh machine:
#   make demo                      the whole road on a rendered sample (about 5 minutes on 2 cores, after installing)
#   make demo DATA=path/to/taco    the same on real photos: a folder with annotations.json, or one folder per class
#   make test                      lint, types and all tests
#
# DALI=cuda130 for drivers from 580 on, DALI=none to do without; the default cuda110 runs on any driver, or on none.

DALI ?= cuda110
VENV ?= .venv
DATA ?=
RECIPE ?= $(if $(DATA),taco,demo)
OUT ?= out/$(if $(DATA),$(notdir $(patsubst %/,%,$(DATA))),demo)

SUITABLE = import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3 python; do \
	$$p -c "$(SUITABLE)" 2>/dev/null && echo $$p && break; done)
EXTRAS = $(if $(filter none,$(DALI)),dev,$(DALI)$(comma)dev)
comma := ,
STAMP = $(VENV)/installed-$(DALI)
RUN = $(VENV)/bin/python -m

.PHONY: demo test lint types clean install

install: $(STAMP)

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Tacopress needs Python 3.10, 3.11 or 3.12; install one, or run: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --editable ".[$(EXTRAS)]"
	@touch $@

demo: $(STAMP)
	@DATA="$(DATA)" OUT="$(OUT)" RECIPE="$(RECIPE)" BIN="$(VENV)/bin" bash training/recipes/demo.sh

test: $(STAMP) lint types
	$(RUN) pytest

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(STAMP)
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) out runs *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

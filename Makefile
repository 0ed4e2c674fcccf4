# Two commands do everything on a fresh machine:
#   make demo                      the whole road on a rendered sample (about 3 minutes on 2 cores, after installing)
#   make demo DATA=path/to/taco    the same on real photos: a folder with annotations.json, or one folder per class
#   make test                      lint, types and all tests; JOBS=3 test files at a time
#
# DALI=cuda130 for drivers from 580 on, DALI=none to do without; the default cuda110 runs on any driver, or on none.

DALI ?= cuda110
VENV ?= .venv
RECIPE ?= $(if $(DATA),quick,demo)
JOBS ?= 3
OUT ?= out/$(if $(DATA),$(notdir $(abspath $(DATA))),demo)

ifeq ($(filter $(DALI),cuda110 cuda130 none),)
$(error DALI=$(DALI) is none of cuda110, cuda130, none)
endif

SUITABLE = import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3 python; do \
	$$p -c "$(SUITABLE)" 2>/dev/null && echo $$p && break; done)
comma := ,
EXTRAS = $(if $(filter none,$(DALI)),dev,$(DALI)$(comma)dev)
STAMP = $(VENV)/installed-$(DALI)
RUN = $(VENV)/bin/python -m

.PHONY: demo check-data test lint types clean install

install: $(STAMP)

# Both DALI wheels fill the same Python package, so the other one goes first.
$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Tacopress needs Python 3.10, 3.11 or 3.12 with venv; install one, or run: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@rm -f $(VENV)/installed-*
	$(RUN) pip install --quiet --upgrade pip
	@$(RUN) pip uninstall --quiet --yes nvidia-dali-cuda110 nvidia-dali-cuda130 2>/dev/null || true
	$(RUN) pip install --quiet --editable ".[$(EXTRAS)]"
	@touch $@

check-data:
	@test -z "$$DATA" || test -d "$$DATA" || { echo "DATA=$$DATA is no folder; give a folder with annotations.json, or with one folder of images per class" >&2; exit 2; }

demo check-data: export DATA := $(DATA)
demo: export OUT := $(OUT)
demo: export RECIPE := $(RECIPE)
demo: export BIN := $(VENV)/bin
demo: check-data $(STAMP)
	@bash training/recipes/demo.sh

test: lint types
	$(RUN) pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(STAMP)
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) out runs *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

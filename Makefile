# Every target sets up .venv by itself; a fresh machine needs Python 3.11 to 3.13 and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TYPES := build/types/pixelmill
FOLDERS := configs models tasks flows

.DEFAULT_GOAL := help
.PHONY: help demo test check docs bench axe chaos release clean

help:
	@echo "make demo   set up, then score, evaluate and report on rendered scenes, offline"
	@echo "make test   set up, then lint, types and every test"
	@echo "make check  lint and types only"
	@echo "make docs   the documentation as a site in build/site, offline"
	@echo "make bench  the benchmarks: JSON and tables in docs/benchmarks"
	@echo "make axe    fetch axe, with which the browser tests then look for barriers"
	@echo "make chaos  kill -9 at random, resume, audit, compare: ROUNDS=100 SEED=0"
	@echo "make release  wheel and sdist, tried outside the checkout; bill of materials, licences"
	@echo "make clean  remove what the other targets made, .venv included"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --upgrade pip

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[dev]'
	touch $@

# Type checkers cannot follow the editable install's import hook: give them the installed names.
$(TYPES):
	mkdir -p $@
	for folder in $(FOLDERS); do ln -sfn "$(CURDIR)/$$folder" "$@/$$folder"; done

demo: $(VENV)/.installed
	$(BIN)/pixelmill demo --out demo

check: $(VENV)/.installed-dev | $(TYPES)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright

test: check
	$(BIN)/python -P -m pytest -n auto --dist loadfile --no-loadscope-reorder

docs: $(VENV)/.installed-dev | $(TYPES)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -P -m mkdocs build --strict

$(VENV)/.installed-bench: $(VENV)/.installed-dev
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[dev,bench]'
	touch $@

# About 25 minutes on two cores; BENCH="throughput --workloads heavy" for a part of it
bench: $(VENV)/.installed-bench
	PYTHONPATH=tests/benchmarks $(BIN)/python -P -m pixelbench $(BENCH)
	$(BIN)/python -P -m pytest -m benchmark -s tests/benchmarks

# Of npm, as no wheel has it; under MPL-2.0, so it is fetched by whoever wants it and never shipped
axe:
	npm install --no-save --no-audit --no-fund --prefix build/axe axe-core

# About a minute a round on two cores
ROUNDS ?= 100
SEED ?= 0
chaos: $(VENV)/.installed-dev
	$(BIN)/python -P tests/flows/chaos.py --rounds $(ROUNDS) --seed $(SEED) --folder build/chaos

$(VENV)/.installed-release: $(VENV)/.installed-dev
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[dev,release]'
	touch $@

# The wheel is built from the sdist, installed where no checkout is, and runs the demo there
RELEASE := $(CURDIR)/build/release
release: $(VENV)/.installed-release
	rm -rf $(RELEASE)
	$(BIN)/python -m build --no-isolation --outdir $(RELEASE)
	$(PYTHON) -m venv $(RELEASE)/venv
	$(RELEASE)/venv/bin/python -m pip install -qq --constraint constraints.txt $(RELEASE)/*.whl
	cd $(RELEASE) && venv/bin/pixelmill --version && venv/bin/pixelmill demo --images 12
	$(BIN)/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
		--output-file $(RELEASE)/sbom.cdx.json $(RELEASE)/venv/bin/python
	$(BIN)/pip-licenses --python $(RELEASE)/venv/bin/python --format markdown --with-urls \
		--output-file $(RELEASE)/licences.md

clean:
	rm -rf $(VENV) build demo .mypy_cache .ruff_cache .pytest_cache .hypothesis

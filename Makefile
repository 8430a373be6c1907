# Everything a person types: make demo, make test, make lint.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= runs/demo
WORKERS ?= 2
.DEFAULT_GOAL := help

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Tessera needs Python 3.10 or newer; set PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --progress-bar off -c constraints.txt -e '.[dev]'
	touch $@

.PHONY: help install demo test test-slow lint format clean
help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: .venv/installed  ## Build .venv from constraints.txt (about 6 GB)

demo: .venv/installed  ## The whole chain; IMAGES=folder of your own, OUT=folder of results, RESUME=1 to go on
	$(BIN)/tessera demo --out "$(OUT)" $(if $(IMAGES),--images "$(IMAGES)") $(if $(RESUME),--resume)

test: .venv/installed  ## Every test but the slow ones; WORKERS=2 processes take a file each
	$(BIN)/pytest -m "not slow" -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-slow: .venv/installed  ## The slow tests
	$(BIN)/pytest -m slow

lint: .venv/installed  ## ruff, mypy --strict, import-linter
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed  ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Remove .venv and caches; runs stay
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

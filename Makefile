# Headrace's commands. `make help` lists them; each sets up what it needs first.
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
HEADRACE := .venv/bin/headrace
DATA ?=
FOR ?=

.PHONY: help setup check test test-all bench demo docs lock clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: ## make .venv from the lock file
	@bash scripts/setup.sh

check: setup ## ruff, mypy --strict, floors
	@.venv/bin/ruff format --check --quiet . && .venv/bin/ruff check --quiet . && .venv/bin/mypy
	@$(PYTHON) -m pytest tests/test_floors.py

test: ## set up and pass the tests, real components included
	@bash scripts/setup.sh --system chromium compiler mosquitto postgresql
	@$(PYTHON) -m pytest -m "not slow" $(ARGS)

test-all: ## the tests that take minutes too
	@bash scripts/setup.sh --system chromium compiler mosquitto postgresql
	@$(PYTHON) -m pytest $(ARGS)

bench: ## every benchmark once; one JSON line each
	@bash scripts/setup.sh --system compiler mosquitto-server
	@for file in benchmarks/[!_]*.py; do echo "# $$file"; $(PYTHON) $$file || exit 1; done

demo: setup ## simulated factories over MQTT to the console; DATA=file replays a real one; FOR=60 stops after a minute
	@$(HEADRACE) demo $(if $(DATA),--data "$(DATA)") $(if $(FOR),--for $(FOR))

docs: setup ## where to read
	@ls README.md CONTRIBUTING.md CHANGELOG.md docs/*.md docs/decisions/*.md

lock: setup ## resolve requirements.lock anew
	@.venv/bin/uv pip compile --quiet --no-header --no-annotate --universal --python-version 3.11 pyproject.toml --extra dev -o requirements.lock

clean: ## remove what make made (never a project's data)
	@rm -rf .venv .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist

# The habits of every day. `make test ARGS="tests/unit -k cli"` passes arguments on.
bin := .venv/bin
ARGS ?=
export PYTHONSAFEPATH := 1

.PHONY: help setup test lint format types demo bench clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "%-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## make .venv, with what tests need
	scripts/setup --dev

test:  ## linters, types, import contracts, tests
	scripts/test $(ARGS)

lint: setup  ## ruff, the import contracts, the Dockerfile
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/lint-imports
	$(bin)/hadolint --failure-threshold info Dockerfile

format: setup  ## let ruff rewrite what it can
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

types: setup  ## mypy, strict
	$(bin)/mypy

demo:  ## ask a small model one question
	scripts/demo $(ARGS)

bench: setup  ## every benchmark, a table and a line of JSON each; most need a GPU
	@for script in scripts/bench/*.py; do $(bin)/python -P "$$script" $(ARGS) || exit; done

clean:  ## remove what was built; models stay in the user's cache
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist src/*.egg-info
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

# The commands of a contributor: make help
# They use .venv, which they make. To use another environment: make test PYTHON=python

PYTHON ?= .venv/bin/python
BENCH ?= --keep-probs 0.5 --no-bernoulli --rounds 7
OWN := $(if $(filter .venv/bin/python,$(PYTHON)),.venv/complete)

.PHONY: help test quick lint format docs bench release check

help: ## say what each command does
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

test: $(OWN) ## run all tests
	$(PYTHON) -m pytest -n auto

quick: $(OWN) ## run the tests that are not marked as slow
	$(PYTHON) -m pytest -n auto -m "not slow"

lint: $(OWN) ## check format, lint and types
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

format: $(OWN) ## format the code, and mend what lint can mend
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

docs: $(OWN) ## build the documentation in docs/_build/html
	$(PYTHON) -m sphinx -W -b html docs docs/_build/html

bench: $(OWN) ## time a step of each optimizer, and write it to benchmarks/results
	$(PYTHON) benchmarks/step_cost.py $(BENCH)

release: ## build what is uploaded, into dist, and try it out
	bash .ci/release

check: ## run everything that CI runs, from nothing
	bash .ci/run

.venv/complete: pyproject.toml
	python3 -m venv .venv
	.venv/bin/pip install -q -e ".[dev,docs]"
	touch $@

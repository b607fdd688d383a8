# Everything starts from Python 3.11 to 3.13, make and pip; `make help` lists the targets.
#   make PYTHON=/path/to/python3.12 ...   chooses the interpreter
#   make VENV=/tmp/venv ...               puts the environment elsewhere
#   make test TESTS=tests/models          runs some of the tests

SHELL := /bin/bash
# The installation compiles nothing, so what is imported must be kept compiled, wherever this is set.
export PYTHONDONTWRITEBYTECODE :=
.DEFAULT_GOAL := help
VENV ?= .venv
WORKDIR ?= runs/quickstart
TESTS ?= tests
BIN := $(VENV)/bin
INSTALL := PYTHON="$(PYTHON)" constraints/install.sh "$(VENV)"
# The packages whose coverage is looked at, the files with fuzzed tests, and the licences that nothing installed may have.
CORE := models learn sample judge evolve evaluate
FUZZED := tests/security/test_fuzzed_files.py tests/weights/test_safetensors_io.py tests/weights/test_gguf_header.py
REFUSED := GNU General Public;GNU Affero;Server Side Public
# One process per core, two at most: each process runs XLA's own threads as well.
WORKERS ?= 2
PYTEST := "$(BIN)/python" -m pytest -n $(WORKERS) --dist loadfile

.PHONY: help quickstart test test-slow fuzz lint types audit licences coverage docs format constraints clean install install-test

help:  ## list the targets
	@grep -E '^[a-z-]+: .*##' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

quickstart: install  ## evolve a small model on this machine and write its report
	"$(BIN)/selfevo" run --config=configs/quickstart.py --workdir="$(WORKDIR)"

test: lint  ## lint, then all tests but the slow ones
	$(PYTEST) $(TESTS)

test-slow: install-test  ## only the slow tests
	$(PYTEST) -m slow $(TESTS)

fuzz: install-test  ## ten thousand broken inputs of every kind that is read from a file
	SELFEVO_FUZZ=70 $(PYTEST) --timeout=7200 $(FUZZED)

lint: install-test  ## check style and formatting
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .

types: install-test  ## check the types of the public modules
	"$(BIN)/mypy"

audit: licences  ## known weaknesses of what is installed, and the licences
	constraints/audit.sh "$(VENV)"

licences: install  ## the licences of what is installed; some are refused
	@$(INSTALL) audit
	"$(BIN)/pip-licenses" --from=mixed --format=markdown --fail-on="$(REFUSED)" --partial-match

coverage: install-test  ## how much of the core its own tests reach
	$(PYTEST) $(foreach part,$(CORE),--cov=selfevo_jax.$(part) tests/$(part)) --cov-report=term --cov-fail-under=90

docs: install-test  ## build the documentation into site/
	"$(BIN)/mkdocs" build --strict --site-dir site

format: install-test  ## rewrite the sources in the house format
	"$(BIN)/ruff" check --fix .
	"$(BIN)/ruff" format .

install:  ## make the environment and install the package
	@$(INSTALL)

install-test:  ## the same with what the tests need
	@$(INSTALL) test

constraints:  ## renew constraints/*.txt by real installations
	@for version in 3.11 3.12 3.13; do \
	    python=$$(PYTHON= constraints/find_python.sh $$version) || { echo "skipped $$version"; continue; }; \
	    "$$python" constraints/lock.py || exit 1; \
	done

clean:  ## remove the environment and the caches; runs are kept
	rm -rf "$(VENV)" .pytest_cache .ruff_cache build dist selfevo_jax.egg-info
	find selfevo_jax tests configs -name __pycache__ -type d -prune -exec rm -rf {} +

# Everything a person runs. `make demo` and `make test` do all of their set-up themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RESULTS := data/benchmarks
# Tests wait for servers half of the time: one process more than there are processors.
TESTERS := $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 4 ? n + 1 : 5)))
UV_COMPILE := uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet

.PHONY: help setup demo test lint types format docs bench bench-long soak compose-smoke lock clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(VENV)/.app ## Make .venv from the hashed lock

demo: setup ## Run everything on this machine over a simulated exchange; Ctrl-C stops it
	$(BIN)/dhan-pipeline demo $(ARGS)

test: lint types ## Lint, check the types, and run all tests
	$(BIN)/pytest --numprocesses $(TESTERS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.dev ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev ## Check types, strictly
	$(BIN)/mypy

format: $(VENV)/.dev ## Rewrite to the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev ## Build the pages of docs/, with a search, into data/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

BENCHMARKS := end_to_end rabbitmq decode enrich journal receive copy_rows rebuild catch_up instruments candles

bench: $(VENV)/.dev ## Measure everything beside what it replaces, in under a quarter of an hour; JSON into data/benchmarks
	@mkdir -p $(RESULTS)
	set -e; for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py --json > $(RESULTS)/$$name.json; done

bench-long: $(VENV)/.dev ## Measure ten minutes at 50,000 ticks/s, an outage, growth, a whole day from the wire to the archive, and the path through RabbitMQ
	@mkdir -p $(RESULTS)
	$(BIN)/python benchmarks/endurance.py --json > $(RESULTS)/endurance.json
	$(BIN)/python benchmarks/growth.py --json > $(RESULTS)/growth.json
	$(BIN)/python benchmarks/rebuild.py --day --json > $(RESULTS)/rebuild_day.json
	$(BIN)/python benchmarks/day.py --json > $(RESULTS)/day.json
	$(BIN)/python benchmarks/rabbitmq.py --rounds 3 --seconds 20 --highest --json > $(RESULTS)/rabbitmq_highest.json

soak: $(VENV)/.dev ## Random faults against the running system, for SOAK_MINUTES (10); is anything lost?
	$(BIN)/python -m dhan_pipeline_tests.soak $(ARGS)

compose-smoke: ## Bring the stack up in containers, break parts of it, compare what is stored with the journal
	$(PYTHON) deploy/compose/smoke.py $(ARGS)

lock: ## Renew the locks from pyproject.toml (needs uv)
	$(UV_COMPILE) --upgrade --extra build pyproject.toml -o requirements.lock
	$(UV_COMPILE) --upgrade --extra dev pyproject.toml -o requirements-dev.lock

clean: ## Remove the environment and all caches; keeps data/
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip checks every file against the lock's hashes; the lock is complete, so there is nothing to resolve.
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --no-deps

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; choose one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "No virtual environment can be made; on Debian: apt-get install python3-venv"; exit 1; }

$(VENV)/.app: requirements.lock pyproject.toml | $(BIN)/pip
	@echo "Installing the locked packages into $(VENV) (about a minute)"
	@$(INSTALL) --require-hashes -r requirements.lock
	@$(INSTALL) --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.app
	@echo "Installing the locked development packages"
	@$(INSTALL) --require-hashes -r requirements-dev.lock
	@touch $@

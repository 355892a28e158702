# Two commands matter: `make demo` and `make test`. Both install what they need.
PY := .venv/bin/python
export PYTHONUNBUFFERED := 1
# Hundreds of processes are started, and each would compile all its modules anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test lint fmt unit search bench install lock clean

demo: ## shows the product at work on this machine, and cleans up after itself
	@tools/install.sh run
	@PATH="$(CURDIR)/.cache/bin:$(PATH)" $(PY) -m purelb_sm sandbox demo

test: ## everything CI runs
	@tools/install.sh test
	@$(MAKE) --no-print-directory lint
	@PATH="$(CURDIR)/.cache/bin:$(PATH)" $(PY) -m pytest -n 2 --dist loadfile

lint: ## ruff, mypy strict, the layer contracts
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports --no-logo 2>/dev/null || .venv/bin/lint-imports

fmt:
	$(PY) -m ruff check --fix-only -q .
	$(PY) -m ruff format .

unit: ## the fast part
	$(PY) -m pytest -q tests/unit

search: ## random interleavings for the book, ten times as many as a test run looks at
	HYPOTHESIS_PROFILE=search SEARCH_TIMES=10 $(PY) -m pytest tests/property

bench: ## how fast it is; writes the tables of docs/performance.md
	$(PY) -m benchmarks all --write

install:
	tools/install.sh test

lock: ## renew requirements.lock from the ranges in pyproject.toml (needs uv)
	uv pip compile pyproject.toml --all-extras --generate-hashes --python-version 3.11 \
	  --no-header --no-emit-index-url --no-emit-find-links -o requirements.lock

clean:
	rm -rf .venv .cache .pytest_cache .mypy_cache .ruff_cache

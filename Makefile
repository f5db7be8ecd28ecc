# Two commands are enough on a fresh machine with Python 3.11 or newer: `make demo` and `make test`.
# Each does its own set-up in .venv; nothing outside this folder is touched.

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
  if command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then echo $$p; break; fi; done)
BIN := .venv/bin
JOBS ?= 2

.PHONY: demo test check fix bench evidence docs clean

demo: .venv/ready
	$(BIN)/mlc demo

test: .venv/ready-dev
	$(BIN)/pytest -q -n $(JOBS)

check: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

fix: .venv/ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/ready-dev
	$(BIN)/python -P tests/benchmarks/run.py

evidence: .venv/ready-dev
	$(BIN)/python -P tests/benchmarks/evidence.py

docs: .venv/ready-dev
	$(BIN)/python -P docs/render_help.py

.venv/ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "mlc needs Python 3.11 or newer; none was found. Set PYTHON=/path/to/python."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	@# pyright and tools that read paths want to find the package without an import hook
	ln -sfn "$(CURDIR)" "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/mlc"
	@touch $@

.venv/ready-dev: .venv/ready
	$(BIN)/python -m pip install --quiet --editable ".[test,check]"
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

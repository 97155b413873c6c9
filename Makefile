# exastore. `make` alone prints this help. Everything lives in .venv; nothing is installed elsewhere,
# but for the Debian packages that `make test` runs as real peers and installs when it may (see `make peers`).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# The first Python of 3.11 or later; override with `make PYTHON=...`.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
FUZZ_S ?= 30
PROTO_DIR := proto/exastore/proto/v1
PROTOS := $(wildcard $(PROTO_DIR)/*.proto)
ROOMS := proto erasure metadata storage gateway sim deploy

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The tools of the environment come first, so that protoc and pre-commit find their plugins.
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: help demo test setup lock proto docs lint format type unit integration chaos verify fuzz bench coverage peers clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: setup ## the whole story on this machine, ends with out/demo/report.html (under 5 minutes)
	$(BIN)/exastore demo --out out/demo

test: setup peers ## every test but the heavy figures: unit, property, contract, integration, chaos
	$(BIN)/pytest

setup: $(STAMP) ## the environment in .venv, exactly as locked

$(STAMP): pyproject.toml requirements-dev.lock requirements-bootstrap.lock
	@if [ -z "$(PYTHON)" ]; then echo "exastore needs Python 3.11 or later: install it, or name it with make PYTHON=/path/to/python" >&2; exit 1; fi
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
		echo "could not make a virtual environment: on Debian and Ubuntu, install python3-venv" >&2; rm -rf $(VENV); exit 1; }
	@echo "installing the locked packages into $(VENV)"
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --require-hashes -r requirements-bootstrap.lock
	@$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements-dev.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

lock: setup ## resolve the dependencies again (hashes, no addresses)
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--group dev --custom-compile-command "make lock" pyproject.toml -o requirements-dev.lock
	grep -A 1000 '^uv==' requirements-dev.lock | awk 'NR > 1 && !/^    --hash/ { exit } { print }' | sed '$$ s/ \\$$//' \
		| cat <(echo "# Installs the installer; made from requirements-dev.lock by: make lock") - > requirements-bootstrap.lock

proto: setup ## generate the gRPC stubs from the .proto files
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=proto --grpc_python_out=proto \
		--mypy_out=quiet:proto --mypy_grpc_out=quiet:proto $(PROTOS)

docs: setup ## write the pages that are made from code
	$(BIN)/python -m exastore.deploy.metrics_reference > docs/metrics.md
	$(BIN)/python -m tests.integration.clients.matrix > docs/clients.md

lint: setup ## ruff, mypy, pyright, import contracts, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/codespell $(ROOMS) tests bench docs examples *.md

format: setup ## rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: setup ## mypy and pyright alone
	$(BIN)/mypy
	$(BIN)/pyright

unit: setup ## the fast tests alone: no process is started
	$(BIN)/pytest tests/unit tests/property tests/contract tests/fuzz tests/tidy

integration: setup peers ## tests of real processes on loopback
	$(BIN)/pytest tests/integration

chaos: setup peers ## fault injection on running clusters, with results in docs/fault-matrix.md (under 45 minutes)
	$(BIN)/pytest tests/chaos tests/integration -m chaos
	rm -rf out/faults
	$(BIN)/pytest -s -m verify --timeout 3600 tests/verification/test_fault_matrix.py tests/verification/test_slow_nodes.py
	$(BIN)/python -m tests.chaos.fault_table

verify: setup ## statistical checks and heavy figures (many minutes)
	$(BIN)/pytest -m verify --timeout 3600 tests/verification

fuzz: setup ## fuzz each parser and the S3 front for FUZZ_S seconds (30), guided by coverage
	@mkdir -p out/fuzz
	@for target in documents addresses signatures frames headers forms requests; do \
		$(BIN)/python tests/fuzz/fuzz.py $$target -max_total_time=$(FUZZ_S) -max_len=1000 -artifact_prefix=out/fuzz/ \
			2>out/fuzz/$$target.log || { tail -n 25 out/fuzz/$$target.log >&2; exit 1; }; \
		tail -n 1 out/fuzz/$$target.log | sed "s/^/$$target: /"; done

bench: setup ## benchmarks, with results in out/bench
	@mkdir -p out/bench
	$(BIN)/python -m pytest bench -o python_files='bench_*.py' -m '' --benchmark-only --benchmark-json out/bench/benchmark.json

coverage: setup ## line and branch coverage; the kernels' lines from a run with the JIT off
	$(BIN)/coverage run -m pytest tests/unit tests/property tests/contract
	NUMBA_DISABLE_JIT=1 $(BIN)/coverage run --append -m pytest tests/unit/test_erasure*.py tests/property/test_erasure*.py
	$(BIN)/coverage report

peers: ## the real programs that tests run against (browser, engines, oracles): installed when this machine lets us
	@tests/ensure_debian.sh

clean: ## remove what was made here: the environment, results, caches
	rm -rf $(VENV) out build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage htmlcov .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

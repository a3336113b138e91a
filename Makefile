# `make` prints this list. Everything runs in .venv, made from constraints.txt.
PYTHON ?= python3.11
# protoc finds its plugins on PATH.
BIN := .venv/bin
export PATH := $(CURDIR)/.venv/bin:$(PATH)
.DEFAULT_GOAL := help
.PHONY: playground help setup demo demo-cluster test test-ray test-ray-full test-cluster check fix serve proto crash agreement interop bench bench-full bench-gpu overload flood soak ledger mini clean

help: ## print this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: .venv/.installed ## create .venv and install everything, pinned by constraints.txt

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[cli,server,web,tracing,dev,fp8]'
	@touch $@

test: check ## run every check and test (what CI runs)
	$(BIN)/python -m pytest

test-ray: .venv/.ray ## fronts and replicas on real Ray: cancels, kills, rolling updates (a quarter of an hour)
	$(BIN)/python -m pytest tests/ray

test-ray-full: .venv/.ray ## the same with hundreds of requests, latency beside a local server and memory, as a report
	$(BIN)/python -m tests.ray

.venv/.ray: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[ray]'
	@touch $@

check: setup ## lint, types, import layers, proto checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.proto.check

fix: setup ## apply the formatters and the linter's fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format -w

serve: setup ## serve mini on port 50051
	$(BIN)/kleinserve serve

demo: setup ## serve mini, generate and edit with previews, leave PNGs in demo/
	$(BIN)/python -m client.demo

demo-cluster: setup ## PostgreSQL, two servers, Envoy, Prometheus; a rolling restart under load and a report; ends by itself
	$(BIN)/python -m benchmarks.cluster demo

test-cluster: setup ## rolling restarts, kills and cancels of two servers behind Envoy, in full (half an hour)
	$(BIN)/python -m benchmarks.cluster

proto: setup ## regenerate the committed Python stubs
	cd proto && ../$(BIN)/python -m grpc_tools.protoc -I. --python_out=gen --pyi_out=gen --grpc_python_out=gen --mypy_grpc_out=quiet:gen klein/v1/image.proto klein/v1/usage.proto

crash: setup ## kill -9 under load: 100 times on SQLite, 20 times on PostgreSQL, with a report (a quarter of an hour)
	$(BIN)/python -m tests.crash.run

agreement: setup ## 500 requests of every kind: streams, metrics and ledger must agree
	KLEIN_AGREEMENT_REQUESTS=500 $(BIN)/python -m pytest -s tests/e2e/test_agreement.py

interop: setup ## nine tasks from Go, Node, Java, C++, Ruby and a browser against a live server; installs their packages
	$(BIN)/python -m clients.interop

playground: setup ## build the playground's module from clients/browser (needs Node and npm)
	$(BIN)/python -m clients.module

.venv/.bench: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[cli,server,web,tracing,dev,fp8,bench]'
	@touch $@

bench: .venv/.bench ## mini beside its peers: 80 % load and a burst (a quarter of an hour)
	$(BIN)/python -m benchmarks quick

bench-full: .venv/.bench ## every load, resumed where it stopped; rewrites docs/PERF.md, docs/bench.json and the plot (hours)
	$(BIN)/python -m benchmarks full

overload: setup ## four times what the server can do, for two minutes: it serves on and refuses at once (three minutes)
	$(BIN)/python -m benchmarks.overload

flood: setup ## hostile reference files beside healthy callers: delays, answers, memory (five minutes)
	$(BIN)/python -m benchmarks.flood

soak: setup ## thirty minutes at 80 % load, large references among it: whether memory grows
	$(BIN)/python -m benchmarks.soak

bench-gpu: ## klein 4B's geometry on CUDA, under 8 minutes, with the python3 that is there; installs nothing
	python3 -m benchmarks gpu

ledger: setup ## GetUsage of a day and a month, and a claim among a million keys, under a second; a delivery's cost under 20 ms (minutes)
	$(BIN)/python -m benchmarks.ledger --records 2000000
	$(BIN)/python -m benchmarks.ledger_cost

mini: setup ## train mini from its seeds, resuming from training/runs (hours on a CPU)
	$(BIN)/python -m training all

clean: ## remove what the targets above made
	rm -rf .venv demo bench clients/build clients/node_modules

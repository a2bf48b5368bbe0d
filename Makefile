# Needs only Python >= 3.11: every target creates the virtual environment it needs.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
PORT ?= 5000
PREFECT ?= http://127.0.0.1:4200/api
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DO_NOT_TRACK := 1
# As upsr/__init__.py, for tests, some of which import torch first.
export GOMP_SPINCOUNT ?= 10000

.PHONY: help repro experiments test test-fast drill rehearsal team check ui flow sweep study nightly nightly-serve docs lock clean

help: ## print this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

.git:
	@echo "$(CURDIR): no git clone, and DVC needs one: git init && git add -A && git commit -m start" >&2; exit 2

repro: .git .venv/ready ## run the whole pipeline: download, crop, pack, train, evaluate, report
	dvc repro
	@echo "Open reports/index.html. Compare runs with: make ui"

experiments: .git .venv/ready ## list experiments: what differs, PSNR, SSIM and LPIPS, the best one marked
	@python -m pipelines.experiments

test: check ## run every check and test, as CI does
	pytest

test-fast: check ## the same without slow tests: whole pipelines, servers, kills
	pytest -m "not slow"

drill: .venv/ready ## break a tiny copy of the project on purpose, for an hour or more, and count what is lost
	python tests/drill.py

rehearsal: .venv/ready ## run the paper's scale with small images, for 40 minutes or more: kills, a night, a sweep
	python tests/rehearsal.py

team: .venv/ready ## rehearse a team on this machine: all services, two checkouts, a pipeline, a sweep, a night
	-uv pip install --quiet --python $(BIN)/python --constraint requirements.lock --editable '.[cluster]'
	python tests/team.py

check: .venv/ready
	ruff check
	ruff format --check
	mypy

ui: .venv/ready ## open MLflow on http://127.0.0.1:5000, or on another port by PORT=5001
	@python -m pipelines.ui --port $(PORT)

flow: .git .venv/ready ## run the pipeline as a Prefect flow, stage by stage
	python -m pipelines.flows pipeline

sweep: .git .venv/ready ## run every combination of sweep.cross in params.yaml as a DVC experiment
	python -m pipelines.flows sweep

study: .venv/ready ## train and measure what scales/study.yaml plans and docs/study lacks; JOBS=2 at a time
	python -m pipelines.study --jobs $(or $(JOBS),1)

nightly: .venv/ready ## evaluate champion and newest candidate on every available benchmark, now
	python -m pipelines.flows nightly

nightly-serve: .venv/ready ## run the nightly evaluation on its schedule, on this machine
	PREFECT_API_URL=$(PREFECT) python -m pipelines.flows serve --start

docs: .venv/ready ## build the documentation and API reference: site/index.html
	mkdocs build --strict

lock: .venv/ready ## pin the newest versions allowed by pyproject.toml
	uv pip compile --universal --python-version 3.11 --extra pipeline --extra dev --upgrade --generate-hashes --quiet \
		--no-emit-index-url --no-emit-find-links --no-header --no-annotate pyproject.toml -o requirements.lock

clean: ## remove the environment and everything the stages wrote
	rm -rf .venv data models reports site mlflow.db mlartifacts .dvc/cache .dvc/tmp

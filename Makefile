# Needs Python >= 3.11 and make; each target makes .venv and installs what it needs into it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test cluster proof bench gpu reference docs lint format clean
.DEFAULT_GOAL := quickstart

# From noise to a scored few-step generator: runs/quickstart/report.html. Killed? Run it again, it resumes.
quickstart: .venv/installed
	$(BIN)/traflow-pipeline run configs/quickstart.yaml

# Two at a time; the tests of a file stay together, for they share what is dear to make.
test: .venv/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not proof and not cluster"

# Runs on clusters of several nodes, which lose some, and runs submitted as jobs, to Ray and to a real Slurm.
cluster: .venv/installed-dev
	$(BIN)/python -m pytest -m cluster

# The quickstart from an empty folder, with the promises of its table checked.
proof: .venv/installed-dev
	$(BIN)/python -m pytest -m proof

# Ratios measured on this machine, as docs/explanation/benchmarks.md keeps them; leave it idle meanwhile.
bench: .venv/installed-dev
	@$(BIN)/python -m benchmarks

# What needs a GPU, in at most eight minutes: a table, and gpu.json. ARGS=--tiny: whether it runs, on any machine.
gpu: .venv/installed
	@$(BIN)/python -m benchmarks.gpu $(ARGS)

# The pages of docs/ that are made from the code; commit them with it.
reference: .venv/installed
	$(BIN)/python -m manual

# The documentation as a site that needs no network and no server: site/index.html. A broken link fails.
docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

lint: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[quickstart]'
	touch $@

.venv/installed-docs: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv runs site build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

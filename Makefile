# Every target is a line of shell that you can also type yourself (without a Makefile: see README).
PYTHON ?= python3
CONSTRAINTS ?= -c constraints.txt
BIN = .venv/bin

.PHONY: help course lab test notebooks bench pocket-model clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' Makefile

course: .venv/installed ## run every lesson on this CPU, write notebooks and pages to runs/course
	$(BIN)/python -m tools.run_course

lab: .venv/installed ## open JupyterLab at the first lesson
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb

test: .venv/installed ## lint, unit tests, drift test and a smoke test of every notebook
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && OMP_NUM_THREADS=1 $(BIN)/python -m pytest

notebooks: .venv/installed ## build notebooks/ from lessons/, executed on the pocket track
	$(BIN)/python -m tools.build_notebooks

bench: .venv/installed ## each thing beside what it beats: benchmarks/results.md (hours)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.bench

pocket-model: .venv/installed ## train the bundled pocket model again, from the seed
	$(BIN)/python -m tools.train_pocket

clean: ## remove runs and caches; .venv stays
	rm -rf runs .pytest_cache .ruff_cache && find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "The course needs Python 3.11 or newer; this is %d.%d. Name a newer one: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

# The stamp: while it is newer than both lists, make installs nothing.
.venv/installed: requirements.txt constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install -r requirements.txt $(CONSTRAINTS)
	@touch .venv/installed

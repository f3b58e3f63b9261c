# Every target is a line of shell that you can also type yourself (without make: docs/systems.md).
PYTHON ?= python3
CONSTRAINTS ?= -c constraints.txt
BIN = .venv/bin

.PHONY: help environment course lab test notebooks bench pocket-model clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' Makefile

course: environment ## run every lesson on this CPU, write notebooks and pages to runs/course
	$(BIN)/python -m tools.run_course

lab: environment ## open JupyterLab on your own copies of the lessons, in work/ (LAB="its options")
	@$(BIN)/python -m tools.lab $(LAB)

test: environment ## lint, unit tests, drift test and a smoke test of every notebook
	$(BIN)/python -m ruff check . && $(BIN)/python -m ruff format --check . && OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

notebooks: environment ## build notebooks/ from lessons/, executed on the pocket track
	$(BIN)/python -m tools.build_notebooks && $(BIN)/python -m tools.module_map

bench: environment ## each thing beside what it beats: benchmarks/results.md (hours)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.bench

pocket-model: environment ## train the bundled pocket model again, from the seed
	$(BIN)/python -m tools.train_pocket

clean: ## remove runs and caches; .venv and your copies in work/ stay
	rm -rf runs .pytest_cache .ruff_cache && find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

OLD = The course needs Python 3.11 or newer; this is %d.%d. Name a newer one: make PYTHON=python3.12
NEW_ENOUGH = import sys; sys.exit(sys.version_info < (3, 11) and "$(OLD)" % sys.version_info[:2])
COMPLETE = import importlib.metadata as m; [m.version(name) for name in open("requirements.txt").read().split()]
CHANGED = find requirements.txt constraints.txt -newer .venv/installed

# Makes .venv, or mends it: a Python that does not start since the system's was replaced, an
# installation that was interrupted, packages that are gone, newer lists. When all is well it takes
# a tenth of a second. Only an environment of your own, made by `python -m venv`, is ever removed.
environment:
	@sound() { $(BIN)/python -c '$(COMPLETE)' 2>/dev/null; }; \
	test -f .venv/installed && test -z "$$($(CHANGED))" && sound && exit; \
	fault=; \
	if ! test -e .venv && ! test -h .venv; then fault=missing; \
	elif ! $(BIN)/python -c '' 2>/dev/null; then fault='its Python does not start'; \
	elif ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  sound && $(BIN)/python -m ensurepip >/dev/null || fault='it has no pip'; \
	fi; \
	if test "$$fault"; then \
	  "$(PYTHON)" -c '$(NEW_ENOUGH)' || exit; \
	  if test "$$fault" != missing; then \
	    if ! test -f .venv/pyvenv.cfg || ! test -w .venv/pyvenv.cfg; then \
	      echo ".venv cannot be used: $$fault. Move it away: make does not remove what is another user's, or was not made by python -m venv." >&2; exit 1; \
	    fi; \
	    echo "The environment in .venv is broken: $$fault. It is made again."; \
	    rm -rf .venv || exit; \
	  fi; \
	  "$(PYTHON)" -m venv .venv || { rm -rf .venv; exit 1; }; \
	elif test -f .venv/installed && ! sound; then \
	  echo "Packages are missing in .venv. They are installed again."; \
	fi; \
	echo "Installing the packages of requirements.txt into .venv, once."; \
	$(BIN)/python -m pip install -r requirements.txt $(CONSTRAINTS) && touch .venv/installed

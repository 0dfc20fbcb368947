# Everything is set up from an empty environment: python3 and make are all that must be there.
#   make demo          the demo study, from nothing to a report
#   make test          lint, types, tests (what CI runs)
#   make test-all      the same, with the tests marked slow
#   TORCH=...          another build of torch, for example  make demo TORCH='torch==2.13.0+cu130'
#   PIP_ARGS=...       passed to pip, for example an index of CPU-only builds
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
PIP_ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt
SOURCES := pyproject.toml constraints.txt

.PHONY: demo test test-all lint types clean bubblewrap
.DELETE_ON_ERROR:

demo: $(VENV)/.installed bubblewrap
	$(BIN)/prism run studies/micro.yaml

test: bubblewrap lint types
	$(BIN)/python -m pytest -m "not slow" -n 2

test-all: bubblewrap lint types
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/pyright

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Prism needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

# torch first and alone: resolved together with the rest, a range would be free to bring another build of it.
$(VENV)/.torch: $(VENV)/bin/python constraints.txt
	$(PIP) "$(TORCH)"
	touch $@

$(VENV)/.installed: $(VENV)/.torch $(SOURCES)
	$(PIP) -e ".[all]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.torch $(SOURCES)
	$(PIP) -e ".[dev]"
	touch $@ $(VENV)/.installed

# Programs that a model wrote run in it. Installed where nobody has to be asked; elsewhere it says what to run, and only
# the steps that run programs stop.
BUBBLEWRAP = if command -v apt-get >/dev/null; then apt-get install -qq -y bubblewrap || { apt-get update -qq; \
	apt-get install -qq -y bubblewrap; }; elif command -v dnf >/dev/null; then dnf install -q -y bubblewrap; else exit 1; fi
bubblewrap:
	@command -v bwrap >/dev/null || { if [ "$$(id -u)" = 0 ]; then sh -c '$(BUBBLEWRAP)'; \
	else sudo -n sh -c '$(BUBBLEWRAP)' 2>/dev/null; fi; } \
	|| echo "no bwrap: tasks that run programs need it; run  sudo apt-get install bubblewrap"

clean:
	rm -rf $(VENV) build dist src/*.egg-info

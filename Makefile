# make run    installs into .venv, builds the models that are missing, starts everything
# make test   installs what tests need and runs them all
# make check  linters and types alone
# make models builds the models that are missing, and no more
#
# ARGS="--port 9000"      options of `tidegate up` (make run) or of pytest (make test)
# WORKERS=4               how many tests run at once (make test): one more than cores, as each waits for servers at times
# PYTHON=python3.11       choose an interpreter (3.10 to 3.12)
# TORCH_INDEX=https://…   an index with CPU builds of torch, to spare the download of CUDA libraries

VENV := .venv
PYTHON ?=
TORCH_INDEX ?=
WORKERS ?= 3
BIN := $(VENV)/bin
# On a terminal pip shows how far it is; elsewhere it is quiet. What is imported is compiled then; all would take longer.
PIP := [ -t 1 ] && quiet= || quiet=--quiet; \
       $(BIN)/python -m pip install $$quiet --no-compile --disable-pip-version-check --constraint constraints.txt \
       $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
SOURCES := pyproject.toml constraints.txt
# Where the shell forbids to keep what is compiled, each process would compile all of it again, for a second.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test check models format environment clean
.DELETE_ON_ERROR:

run: $(VENV)/.run
	@exec $(BIN)/tidegate up $(ARGS)

test: $(VENV)/.test
	@$(MAKE) --no-print-directory --jobs=2 check models
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(ARGS)

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

models: $(VENV)/.test
	@$(BIN)/tidegate models build

format: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(BIN)/python:
	@python=$$(sh scripts/find-python.sh $(PYTHON)) && "$$python" -m venv $(VENV)

# An environment of another Python is one line here; pip and the import system would need many.
environment: $(BIN)/python
	@found=$$($(BIN)/python -c 'import platform; print(platform.python_version())' 2>/dev/null || echo none); \
	case $$found in 3.1[012].*) ;; *) \
	  echo "error: $(VENV) is of Python $$found, and Tidegate needs 3.10 to 3.12: remove $(VENV), make run again" >&2; \
	  exit 1 ;; \
	esac

$(VENV)/.run: $(BIN)/python $(SOURCES) | environment
	@echo "installing Tidegate into $(VENV) (a few minutes the first time)"
	@$(PIP) --editable '.[embedded,zoo,dashboard]'
	@touch $@

$(VENV)/.test: $(BIN)/python $(SOURCES) | environment
	@echo "installing Tidegate and what its tests need into $(VENV) (a few minutes the first time)"
	@$(PIP) --editable '.[embedded,zoo,dashboard,bench,dev]'
	@touch $(VENV)/.run $@

clean:
	rm -rf $(VENV) .tidegate model_repository/*/config.pbtxt model_repository/*/card.json model_repository/*/[0-9]*

# `make demo` and `make test` set up all they need, in .venv. Another Python: make PYTHON=python3.12

PYTHON ?= python3
PROMPT ?= a red car
OUTPUT ?= out/demo
PYTEST_ARGS ?= --numprocesses auto --dist loadfile

VENV := .venv
BIN := $(VENV)/bin

.NOTPARALLEL:
.PHONY: demo test browser lint types docs page bench bench-gpu parity clean

# spad prints where the pictures are.
demo: $(VENV)/.core
	$(BIN)/spad generate "$(PROMPT)" --output "$(OUTPUT)" --overwrite

# A process for each core; those of one file stay together, as they share what they made.
test: $(VENV)/.test
	$(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# The tests of pages skip without a browser. Debian and Ubuntu; elsewhere set SPAD_CHROMIUM.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
		{ apt-get update -q && apt-get install -y -q --no-install-recommends chromium; } || \
		echo "no Chromium installed here: the tests of pages will be skipped"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Both systems at once, as each takes minutes on one core.
types: $(VENV)/.dev
	printf '%s\n' Linux Windows | \
		xargs -P 2 -n 1 $(BIN)/pyright --pythonpath $(BIN)/python --pythonplatform

# The variable silences announcements of other programs.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# The bundle is committed, so that using spad needs no Node.js.
page:
	cd web && npm ci && npm run build

bench: $(VENV)/.core
	$(BIN)/python benchmarks/bench_start.py

# For whoever has a GPU: everything about it in one report, in benchmarks/results.
bench-gpu: $(VENV)/.core
	$(BIN)/python benchmarks/bench_gpu.py

# Compares with numbers recorded from the original code, which are not in this repository.
GOLDEN ?= ../shared/golden
parity: $(VENV)/.test
	$(BIN)/python tests/parity.py $(GOLDEN) > docs/parity.md.part
	mv docs/parity.md.part docs/parity.md

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# One file for every set of packages says that it is installed as these two files ask. pip would compile
# with one core. Not to compile makes every start several times slower where Python may not keep what it
# compiled (PYTHONDONTWRITEBYTECODE). Some packages have templates that are no Python.
$(VENV)/.core: EXTRAS :=
$(VENV)/.test: EXTRAS := [data,mesh,app,test]
$(VENV)/.dev: EXTRAS := [dev]
$(VENV)/.docs: EXTRAS := [docs]
$(VENV)/.core $(VENV)/.test $(VENV)/.dev $(VENV)/.docs: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
		{ echo "expected Python 3.10 to 3.13, got $$($(PYTHON) -V); try make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --no-compile -c constraints.txt -e ".$(EXTRAS)"
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib src || true
	touch $(VENV)/.core $@

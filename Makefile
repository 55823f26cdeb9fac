# What a new user runs: `make demo`, `make demo-generation`, `make demo-encoders`, `make test`. Everything is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
TWO := -n 2 --dist loadscope --no-loadscope-reorder

# Of `make soak`: hostile inputs (100,000 take 15 minutes), corruptions of a storage, kills on every host
INPUTS ?= 100000
CORRUPTIONS ?= 200
KILLS ?= 20
SEED ?= 0

.PHONY: demo demo-generation demo-encoders encoders-tables encoders-report check test test-all coverage soak
.PHONY: lint types dry-run site

demo: .venv/installed
	$(BIN)/lorae sweep pipelines/demo.py
	$(BIN)/python -m analysis.demo lorae-results
	$(BIN)/lorae report lorae-results --sweep demo --out lorae-results/report/demo

demo-generation: .venv/installed
	$(BIN)/lorae sweep pipelines/generation_demo.py
	$(BIN)/lorae table generation lorae-results --sweep generation_demo

demo-encoders: .venv/installed
	$(BIN)/lorae sweep pipelines/encoders.py
	OPENBLAS_NUM_THREADS=1 $(MAKE) --no-print-directory -j2 encoders-tables encoders-report

encoders-tables:
	$(BIN)/python -m analysis.encoders lorae-results

encoders-report:
	$(BIN)/lorae report lorae-results --sweep encoders --out lorae-results/report/encoders

# The inner loop: what starts neither Ray nor another process, and is no slow test
check: lint
	$(BIN)/pyright > .venv/pyright.log & types=$$!; \
	$(BIN)/python -m pytest $(TWO) -m "not process and not ray and not slow"; tests=$$?; \
	wait $$types; types=$$?; cat .venv/pyright.log; exit $$((tests | types))

# The suite but what starts clusters or kills processes by the dozen
test: .venv/installed
	$(BIN)/python -m pytest $(TWO) -m "not cluster"

test-all: .venv/installed
	$(BIN)/python -m pytest $(TWO)

# How much of each file the quick tests run; what only starts in other processes is not counted
coverage: .venv/installed
	$(BIN)/python -m pytest $(TWO) -m "not process and not ray and not slow" \
	  --cov=lorae --cov=analysis --cov=jobs --cov-report=term:skip-covered

soak: .venv/installed
	PYTHONPATH=tests/support $(BIN)/python tests/soak/soak_inputs.py --number $(INPUTS) --seed $(SEED)
	LORAE_SOAK=$(CORRUPTIONS) LORAE_SOAK_SEED=$(SEED) $(BIN)/python -m pytest tests/soak/test_soak_storage.py -s
	SOAK_KILLS=$(KILLS) SOAK_SEED=$(SEED) $(BIN)/python -m pytest tests/soak/soak_kills.py -s

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/pyright

# The documents as a site, with the reference from docstrings: build/site/index.html
site: .venv/installed
	$(BIN)/mkdocs build --strict --quiet --config-file .mkdocs.yml

dry-run: .venv/installed
	$(BIN)/lorae sweep pipelines/demo.py --dry-run
	# glue_minilm reads files of its own: --data-root
	for file in $(filter-out pipelines/glue_minilm.py, $(wildcard pipelines/[!_]*.py)); do $(BIN)/lorae sweep $$file --smoke --dry-run || exit 1; done

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

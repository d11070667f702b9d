PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help setup repro ui table report predict test soak lint use metrics-diff bench gpu ablation lock

help:                            ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.installed          ## virtual environment with pinned packages and the project

.venv/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try: make setup PYTHON=python3.11")'
	@echo "setup: minutes, 6.7 GB with PyTorch's build for GPUs; the one for CPUs: docs/installing.md"
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint requirements.lock --editable '.[dev]'
	touch $@

repro: setup                     ## the whole pipeline, or what of it has changed
	dvc repro

ui: setup                        ## MLflow's pages of the runs; PORT=5001 where 5000 is taken
	python -m pipeline.ui --port $(or $(PORT),5000)

table: setup                     ## experiments: their scores and what they changed, the best first
	dvc exp show --no-pager --only-changed \
		--keep '(source_only|adapted)[.]miou' --drop '.*(/|iou|accuracy|images|share|demo|Created).*' \
		--sort-by metrics/evaluate.json:adapted.miou --sort-order desc

predict: setup                   ## make predict IMAGES=folder: labels of one's own images; OUT=predicted
	python -m pipeline.predict $(or $(IMAGES),$(error IMAGES=: images, videos or folders of them)) \
		--out $(or $(OUT),predicted)

report: setup                    ## one HTML page of the workspace; EXPERIMENTS="a b" compares
	python -m pipeline.page $(EXPERIMENTS)

test: setup                      ## the tests, two at a time
	pytest -n 2

soak: setup                      ## the long tests: kills, faults, load (an hour)
	pytest -m soak

lint: setup                      ## style and types
	ruff check .
	ruff format --check .
	pyright

use: setup                       ## make use PRESET=gta_small: take a preset as params.yaml; METHOD=, NETWORK=, DATA= change it
	python -m pipeline.presets $(PRESET) $(addprefix data/,$(DATA)) $(addprefix network/,$(NETWORK)) $(addprefix method/,$(METHOD))
	python -m pipeline.dependencies

metrics-diff: setup              ## make metrics-diff BASE=main: what changed, and whether it may be merged
	@python -m pipeline.diff $(or $(BASE),main)

bench: setup                     ## what the parts cost, against the usual way (minutes)
	python -m benchmarks

gpu:                             ## what a GPU makes of it (9 minutes); SMALL=1 rehearses on a CPU
	$(PYTHON) -m benchmarks.gpu $(PARTS)

ablation: setup                  ## which mechanisms pay (a day; resumes: stop and start it at will)
	python -m research.ablation --jobs 2
	python -m research.summary
	python -m research.documents

lock: setup                      ## pin what is installed now
	.venv/bin/python -m pip freeze --exclude-editable > requirements.lock

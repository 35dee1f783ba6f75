# `make run` and `make test` are all a newcomer needs: each makes .venv, installs what is missing and goes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
WORKERS ?= 2
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
# CUDA code for one architecture, which the tests look into; a package that is installed without this file has all.
export TORCH_CUDA_ARCH_LIST ?= 9.0+PTX

CPP = $(shell find csrc python/virtual_gpu tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

# Of one `make gpu`: its time in seconds, the build's included; parts by the first letters of their names, none for all; where the
# record goes, and where an earlier one is gone on with.
GPU_SECONDS ?= 450
GPU_PARTS ?=
GPU_RECORDS ?= benchmarks/results
GPU_PACKAGES ?= pytest pytest-xdist pytest-timeout hypothesis rich typer ninja

.PHONY: help run test test-all lint bench bench-compare gpu gpu-packages install native clean

run: install  ## trains Memformers and judges them: a table, a figure, measured data
	$(BIN)/memformer-lab run

help:  ## prints this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

# Two test processes of one thread each: threads that wait for each other at every small operation cost more than they give.
test: install lint  ## checks style and types, runs the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m "not slow and not gpu"

test-all: install lint  ## runs the slow tests too, for hours
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

lint: install  ## checks style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

# One table: workload W on every provider, with this machine's copy bandwidth and FMA rate measured in the same run.
bench: install  ## times workload W on every provider
	$(BIN)/python -m benchmarks

# Ours against the committed records, in ratios to the fastest peer of the same run; fails if one fell beyond the noise.
bench-compare: install  ## compares with the committed records, in ratios
	$(BIN)/python -m benchmarks compare

# For a machine with an NVIDIA GPU: correctness, then benchmarks, and one small JSON record. What does not fit in the time is left to
# the next run. It installs nothing: .venv if it is there, else any Python with torch, Triton, numpy and what gpu-packages has.
gpu:  ## tests and benchmarks on an NVIDIA GPU, in parts
	end=$$(($$(date +%s) + $(GPU_SECONDS))); $(GPU_PYTHON) -m benchmarks.gpu.build --until $$end; \
	PYTHONPATH=python $(GPU_PYTHON) -m benchmarks.gpu --until $$end --records $(GPU_RECORDS) $(GPU_PARTS)

# For a Python 3.12 elsewhere that has none of its own and no network: to be copied with the tree.
gpu-packages:  ## fetches what `make gpu` needs where no network is
	$(PYTHON) -m pip install --quiet --target .gpu-packages --upgrade --python-version 3.12 --only-binary :all: $(GPU_PACKAGES)

install: native  ## makes .venv and builds all

# The native library from csrc, and the virtual GPU's, in the source tree. Asks ninja every time, which takes no time when nothing changed.
native: $(INSTALLED)  ## builds the native libraries again where sources changed
	$(BIN)/python setup.py build_native --inplace
	PYTHONPATH=python $(BIN)/python -c 'from virtual_gpu.build import main; main()'

# torch and the build tools come first, so that the package itself is built against the torch it will run with. Both steps show what
# they do: fetching torch and compiling take minutes.
$(INSTALLED): pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt setuptools wheel ninja torch numpy
	$(BIN)/python -m pip install --constraint constraints.txt --no-build-isolation --editable '.[lab,test,triton]'
	touch $@

clean:  ## removes what was built or installed; results stay
	rm -rf $(VENV) .gpu-packages build dist *.egg-info python/*.egg-info memformer_kernels/_lib python/virtual_gpu/_lib

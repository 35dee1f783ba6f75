# `make run` and `make test` are all a newcomer needs: each makes .venv, installs what is missing and goes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
WORKERS ?= 2
# The torch of .venv where it is not the pinned one, such as ==2.10.* or >=2.10; it chooses when .venv is made.
TORCH ?=
# What `make test-wheels` gives to tests/wheels.py.
WHEEL_TESTS ?=
WHEEL = $(BIN)/python -m pip wheel --no-deps --no-build-isolation
CONSTRAINTS := $(if $(TORCH),$(VENV)/constraints.txt,constraints.txt)
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

.PHONY: help run test tests test-all lint docs notebooks wheels test-wheels bench bench-compare gpu gpu-packages install native clean

# What is in place is brought up to date; in a fresh clone that is the CPU library, for this processor alone.
run: $(INSTALLED)  ## trains Memformers and judges them: a table, a figure, measured data
	$(BIN)/python setup.py build_native --inplace --here
	$(BIN)/memformer-lab run

help:  ## prints this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

# Two test processes of one thread each: threads that wait for each other at every small operation cost more than they give.
test: lint tests  ## checks style and types, runs the tests

tests: install  ## runs the tests alone
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m "not slow and not gpu"

test-all: install lint  ## runs the slow tests too, for hours
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

lint: install  ## checks style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

docs: $(VENV)/.with-docs  ## makes the site, build/site/index.html; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

notebooks: install  ## runs the notebooks of docs and keeps what they show
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.notebooks

# The wheels are made of the archive, as on another machine, and their CUDA code is for all that nvcc knows. torch's libraries are not
# copied into the first: they are those of the torch that it is installed with.
wheels: export TORCH_CUDA_ARCH_LIST :=
wheels: $(VENV)/.with-release  ## makes the archive of the source, a manylinux wheel and a pure one, all in dist
	rm -rf dist build/wheels
	$(BIN)/python -m build --sdist --no-isolation --outdir dist .
	MEMFORMER_FORCE_NATIVE=1 $(WHEEL) --wheel-dir build/wheels dist/*.tar.gz
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' --wheel-dir dist build/wheels/*.whl
	MEMFORMER_SKIP_NATIVE=1 $(WHEEL) --wheel-dir dist dist/*.tar.gz
	$(BIN)/twine check --strict dist/*

# Each wheel gets new environments of its own, one for each interpreter and version of torch that WHEEL_TESTS names.
test-wheels:  ## installs what is in dist into new environments and runs the tests there
	$(PYTHON) -m tests.wheels $(WHEEL_TESTS)

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

# torch and the build tools come first, so that the native libraries are built against the torch they will run with; what is made next
# says which of them. Both steps show what they do: fetching torch takes minutes.
$(INSTALLED): pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifneq ($(TORCH),)
	sed '/^torch==/d; /^triton==/d' constraints.txt > $(CONSTRAINTS)
	echo 'torch$(TORCH)' >> $(CONSTRAINTS)
endif
	$(BIN)/python -m pip install --constraint $(CONSTRAINTS) setuptools wheel ninja torch numpy
	env -u MEMFORMER_FORCE_NATIVE MEMFORMER_SKIP_NATIVE=1 \
		$(BIN)/python -m pip install --constraint $(CONSTRAINTS) --no-build-isolation --editable '.[lab,test,triton]'
	touch $@

# What one more extra brings.
$(VENV)/.with-%: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --no-build-isolation --editable '.[$*]'
	touch $@

clean:  ## removes what was built or installed; results stay
	rm -rf $(VENV) .gpu-packages build dist *.egg-info python/*.egg-info memformer_kernels/_lib python/virtual_gpu/_lib

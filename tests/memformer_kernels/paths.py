"""The ways a call can take: every pair of backend and algorithm that this machine can run. New backends add theirs."""

import os
from typing import NamedTuple, TypedDict

import pytest
import torch

from memformer_kernels import build_info
from memformer_kernels.testing import Case


class Options(TypedDict):
    """A path as keyword arguments of the public functions."""

    backend: str
    algorithm: str


class Path(NamedTuple):
    """One backend and one algorithm."""

    backend: str
    algorithm: str

    def __str__(self) -> str:
        return f"{self.backend}-{self.algorithm}"

    @property
    def options(self) -> Options:
        return {"backend": self.backend, "algorithm": self.algorithm}

    def serves(self, case: Case) -> bool:
        """Whether this path can run the case: Gram space has no token axis."""
        return self.algorithm == "token" or not case.token_axis


# An interpreter is a thousand times slower than a kernel: the contract's tests go through it where that is asked for.
# Those of backends/triton always do. Where there is a GPU, `cuda` takes part: tensors are moved there.
_LEFT_OUT = () if os.environ.get("MEMFORMER_TEST_TRITON") == "1" else ("triton",)

PATHS = [
    Path(name, algorithm)
    for name, backend in build_info().backends.items()
    if backend.available and name not in _LEFT_OUT and (name != "cuda" or torch.cuda.is_available())
    for algorithm in ("gram", "token")
]
BACKENDS = sorted({path.backend for path in PATHS})

on_every_path = pytest.mark.parametrize("path", PATHS, ids=str)
on_every_backend = pytest.mark.parametrize("backend", BACKENDS)

"""A plugin of pytest (`-p`): the contract's tests as on a machine with a GPU, whose backend takes their tensors.

The GPU is the CPU: tensors stay where they are, and the CPU library answers for the CUDA library. It shows which tests
would not do what they say where there is a GPU; kernels are tested elsewhere.
"""

import pytest

from memformer_kernels import availability, backends
from tests.memformer_kernels import moving


def pytest_configure(config: pytest.Config) -> None:
    moved = moving.moved
    moving.served = lambda: ["cuda"]
    moving.moved = lambda value, device: moved(value, "cpu")
    availability._faults["cuda"] = None
    backends.BACKENDS["cuda"] = backends.BACKENDS["cpu"]

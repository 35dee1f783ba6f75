"""The GPUs that tests of the Triton backend ask for."""

from collections.abc import Iterator

import pytest

from tests.gpu.tensors import Gpu
from tests.gpu.triton.gpus import GPUS, gpu_of


@pytest.fixture(params=GPUS)
def gpu(request: pytest.FixtureRequest) -> Iterator[Gpu]:
    """An NVIDIA GPU, where there is one, and a virtual one, for Triton."""
    with gpu_of(request.param) as found:
        yield found

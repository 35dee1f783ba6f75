"""The GPUs that tests of the CUDA library ask for."""

from collections.abc import Iterator

import pytest

from tests.gpu.cuda.gpus import GPUS, gpu_of
from tests.gpu.tensors import Gpu


@pytest.fixture(params=GPUS)
def gpu(request: pytest.FixtureRequest) -> Iterator[Gpu]:
    """An NVIDIA GPU, where there is one, and a virtual one, under the CUDA library."""
    with gpu_of(request.param) as found:
        yield found

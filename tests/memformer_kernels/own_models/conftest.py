"""What the tests of the blocks share."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def _threads_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)

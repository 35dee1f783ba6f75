"""What error messages say of a value that came: its kind and shape, never its numbers."""

import numpy as np
import pytest
import torch

from memformer_kernels import memformer_loss
from memformer_kernels.calls.checks import describe


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.zeros(2, 3), "a torch.float32 tensor of shape (2, 3) on cpu"),
        (np.zeros((2, 3)), "a numpy.ndarray of float64 and shape (2, 3)"),
        (np.float32(1.5), "a numpy.float32 of float32 and shape ()"),
        ([0.5] * 1000, "a list of length 1000"),
        ([[0.5] * 1000], "a list of length 1"),
        (tuple(range(1000)), "a tuple of length 1000"),
        ({str(key): key for key in range(1000)}, "a dict of length 1000"),
        ([1, 2], "[1, 2] (list)"),
        ("word", "'word' (str)"),
        ("x" * 1000, "'" + "x" * 199 + "... (str)"),
        (3, "3 (int)"),
        (None, "None (NoneType)"),
    ],
)
def test_a_value_is_described(value: object, expected: str) -> None:
    assert describe(value) == expected


def test_an_array_in_place_of_a_tensor_is_named_and_not_printed() -> None:
    with pytest.raises(TypeError, match=r"^z: .*, got a numpy.ndarray of float64 and shape \(2, 3, 4\)$"):
        memformer_loss(np.zeros((2, 3, 4)), torch.zeros(2, 1), torch.zeros(1, 1, 3, 3))

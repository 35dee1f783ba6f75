"""A response-only network as a function of NumPy, written out with its numbers."""

from __future__ import annotations

import numpy as np

from memformer_lab.solvers.first_order import FirstOrderMethod
from memformer_lab.solvers.residual import gradient_weights

_FUNCTION = '''

def predict(x, y, queries):
    """Predictions (m,) for queries (m, d) from examples x (n, d) and their responses y (n,)."""
    h, b = x.T @ x / len(x), x.T @ y / len(x)
    w, moves = np.zeros(len(b)), []
    for a, weights in zip(A, WEIGHTS):
        moves.append(a @ (b - h @ w))
        w = w + weights[: len(moves)] @ np.array(moves)
    return queries @ w
'''


def numpy_source(method: FirstOrderMethod) -> str:
    """A Python file that needs NumPy alone: `predict(x, y, queries)` is the network, to rounding of float64.

    Args:
        method: of `first_order_method`, or the `method` of an `Explanation`.
    """
    a = -method.a.detach().double().cpu().numpy()
    layers, d = a.shape[:2]
    return (
        f'"""A response-only Memformer of {layers} layers for d = {d}, as the first-order method that it is.\n\n'
        "Layer l multiplies b - H w by its A[l], and adds the moves made so far with its WEIGHTS[l].\n"
        f'"""\n\nimport numpy as np\n\nA = {_written(a)}\n\nWEIGHTS = {_written(gradient_weights(method))}\n{_FUNCTION}'
    )


def _written(values: np.ndarray) -> str:
    """An array as code that makes the very same one: a row a line."""
    rows = [", ".join(map(repr, row.tolist())) for row in values.reshape(-1, values.shape[-1])]
    body = "".join(f"    {row},\n" for row in rows)
    return f"np.array([\n{body}]).reshape({', '.join(map(str, values.shape))})"

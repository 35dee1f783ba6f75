"""Newton's iteration for the inverse as a linear Transformer whose weights are written down and not trained.

A Transformer of k + O(1) layers and hidden size O(d) can run k iterations of

    M_{k+1} = 2 M_k - M_k S M_k,    M_0 = alpha S,    S = X^T X / n

and predict x^T M_k X^T y / n (Fu et al., arXiv 2310.17086, theorem 5.1); Giannou et al. (arXiv 2403.03183) take two
layers of linear attention for a step of it. Here it takes k + 2 layers of linear attention, each of one head and
without memory or feed-forward block, on tokens of 2 d + 1 numbers (x, u, y) that begin with u = 0:

    first     u_i = alpha S x_i                              query x_i, keys x_j, values alpha x_j
    step j    u_i = u_i - 2^(j-1) mean_m u_m (x_m . u_i)     query u_i, keys x_m, values -2^(j-1) u_m;  j = 0..k-1
    last      yhat = 2^k mean_m y_m (x_m . u)                query u, keys x_m, values y_m

A token carries u_i = 2^-j M_j x_i. Then mean_m u_m x_m^T u_i = 4^-j M_j S M_j x_i, and what a layer adds to its tokens
makes u_i into 2^-(j+1) (2 M_j - M_j S M_j) x_i. It is the scale that takes the place of the 2: attention without a
feed-forward block has no term that is linear in its own token. Powers of two round nothing, so the network is exact
where the iteration is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memformer_kernels import memformer_stack
from memformer_kernels.nn import Memformer


def newton_network(d: int, iterations: int, alpha: float, dtype: torch.dtype = torch.float64) -> Memformer:
    """The network of `iterations` + 2 layers; it predicts on `newton_tokens`.

    The weights are fixed, so alpha is the same for all tasks: the iteration converges on those whose largest
    eigenvalue of S is below sqrt(2 / alpha).

    Args:
        d: features of a task, at least 1.
        iterations: k, at least 0.
        alpha: of M_0 = alpha S, positive.
        dtype: of the weights.

    Returns:
        A `Memformer` of rule "linear" and dense structure, of 2 d features and 1 head, on the CPU.

    Raises:
        ValueError: for an argument out of range.
    """
    if d < 1 or iterations < 0 or not 0 < alpha < float("inf"):
        raise ValueError(
            f"expected d >= 1, iterations >= 0 and a positive finite alpha, got d={d}, iterations={iterations}, "
            f"alpha={alpha}"
        )
    with torch.random.fork_rng(devices=[]):
        model = Memformer(2 * d, iterations + 2, rule="linear", structure="dense", device="cpu", dtype=dtype)
    identity = torch.eye(d, dtype=dtype, device="cpu")
    x, u, y = slice(0, d), slice(d, 2 * d), 2 * d
    q, p = (torch.zeros(model.layers, 2 * d + 1, 2 * d + 1, dtype=dtype, device="cpu") for _ in range(2))
    q[0, x, x], p[0, u, x] = identity, alpha * identity
    for step in range(iterations):
        q[1 + step, u, x], p[1 + step, u, u] = identity, -(2.0 ** (step - 1)) * identity
    # A prediction is minus the response slot.
    q[-1, u, x], p[-1, y, y] = identity, -(2.0**iterations)
    model.load_arguments({"q": q.unsqueeze(1), "p": p.unsqueeze(1)})
    return model


def newton_tokens(z: Tensor) -> Tensor:
    """Tokens (x, 0, y) of 2 d + 1 numbers, (B, N, 2 d + 1), from tasks z (B, N, d + 1)."""
    x, y = z[..., :-1], z[..., -1:]
    return torch.cat([x, torch.zeros_like(x), y], dim=-1)


def carried_inverse(model: Memformer, z: Tensor, context: int) -> Tensor:
    """M_k as the network carries it before its last layer: read from the d unit vectors as queries.

    Args:
        model: of `newton_network`.
        z: tasks (B, N, d + 1), in the model's dtype.
        context: examples n of each task.

    Returns:
        (B, d, d).
    """
    d, iterations = model.d // 2, model.layers - 2
    units = z.new_zeros(z.shape[0], d, d + 1)
    units[:, :, :-1] = torch.eye(d, dtype=z.dtype, device=z.device)
    arguments = model.stack_arguments()
    assert arguments["p"] is not None
    tokens = newton_tokens(torch.cat([z[:, :context], units], dim=1))
    carried = memformer_stack(tokens, arguments["q"][:-1], arguments["p"][:-1], context=context)
    return 2.0**iterations * carried[:, context:, d : 2 * d].mT


def newton_inverse(s: Tensor, iterations: int, alpha: float) -> Tensor:
    """M_k by the iteration itself: (B, d, d), from S (B, d, d) and M_0 = alpha S."""
    inverse = alpha * s
    for _ in range(iterations):
        inverse = 2 * inverse - inverse @ s @ inverse
    return inverse

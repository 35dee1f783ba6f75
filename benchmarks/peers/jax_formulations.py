"""The peers in JAX under jit, for XLA: the forms of `formulations` that serve XLA best on a CPU. Needs JAX.

Batch first throughout: with the batch axis last XLA's loops over short leading axes are several times slower. Gradients
come from `jax.value_and_grad`, and on a CPU a large batch runs in parts whose sums are added up, so that
intermediates stay in the cache; both inside one jitted function. Arrays cross from and to PyTorch through DLPack
without a copy, and work on the device of the tensors they were made from.
"""

import os
from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Any

import torch

# XLA sizes its thread pool when its client starts: as many threads as PyTorch's, or the ratio would compare machines.
os.environ.setdefault("PJRT_NPROC", str(torch.get_num_threads()))
# XLA would take three quarters of a GPU's memory for itself at its first use, and PyTorch has its tensors there.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp

from benchmarks.peers.formulations import UNROLLED_CONTEXT

Array = Any  # jax.Array, which a type checker without JAX cannot name
Loss = Callable[[Array, Array, Array, Array, int], Array]

PART = 10_000
"""Tasks of a part of a large batch."""


def gram(z: Array, target: Array, q: Array, gamma: Array, n: int) -> Array:
    """As `formulations.gram`: H and b once by a loop over examples that XLA fuses, then L steps on w (B, d)."""
    context = z[:, :n]
    if n <= UNROLLED_CONTEXT:
        g = reduce(add, [context[:, i, :, None] * context[:, i, None, :] for i in range(n)]) / n
    else:
        g = jnp.einsum("bni,bnj->bij", context, context) / n
    h, b = g[:, :-1, :-1], g[:, :-1, -1]
    a = q.sum(1).swapaxes(1, 2)
    weights = gamma[:, :, 0, 0, -1]
    w = jnp.zeros_like(b)
    registers: list[Array] = []
    for layer in range(q.shape[0]):
        residual = b - jnp.einsum("bij,bj->bi", h, w) if layer else b
        registers.append(residual @ a[layer])
        w = w - reduce(add, [weights[layer, j] * register for j, register in enumerate(registers)])
    query = z[:, n:]
    prediction = jnp.einsum("bqi,bi->bq", query[..., :-1], w) - query[..., -1]
    return jnp.square(prediction - target).mean()


def reassociated(z: Array, target: Array, q: Array, gamma: Array, n: int) -> Array:
    """As `formulations.reassociated`: features stay, the column y moves by X (A (X^T y / n))."""
    x, y = z[..., :-1], z[..., -1]
    a = q.sum(1).swapaxes(1, 2)
    layers = q.shape[0]
    weights = jnp.broadcast_to(gamma[..., -1], (layers, layers, 1, z.shape[1]))
    registers: list[Array] = []
    for layer in range(layers):
        step = (jnp.einsum("bni,bn->bi", x[:, :n], y[:, :n]) / n) @ a[layer]
        moved = slice(n, None) if layer == layers - 1 else slice(None)
        registers = [register[:, moved] for register in registers]
        registers.append(jnp.einsum("bni,bi->bn", x[:, moved], step))
        y = y[:, moved] + reduce(add, [weights[layer, j, 0, moved] * r for j, r in enumerate(registers)])
    return jnp.square(y + target).mean()


FORMS: dict[str, Loss] = {"Gram": gram, "re-associated": reassociated}


def missing(platform: str) -> str:
    """Why JAX has no device of a platform, "cpu" or "cuda"; empty where it has one."""
    try:
        jax.devices(platform)
    except RuntimeError as error:
        return f"jax {jax.__version__} has no {platform} device: {str(error).splitlines()[0]}"
    return ""


def build(form: str, q: torch.Tensor, gamma: torch.Tensor, n: int, batch: int) -> Callable[..., Any]:
    """A function of z (B, N, D) and target (B, N - n), B being `batch`, that waits for the loss and its gradients,
    (value, (q's, gamma's)), as JAX arrays.

    A batch becomes JAX arrays at its first call and is kept: later calls time the computation alone. On a GPU, JAX has
    a stream of its own; events on PyTorch's enclose its work, since the function returns when the results are there.
    """
    jax.config.update("jax_enable_x64", q.dtype == torch.float64)
    # A GPU would multiply in TF32 by default, which the correctness gate turns away; nothing changes on a CPU.
    jax.config.update("jax_default_matmul_precision", "highest")
    loss = FORMS[form]
    parts = batch // PART if q.device.type == "cpu" and batch % PART == 0 else 1

    def share(q: Array, gamma: Array, z: Array, target: Array) -> Array:
        return loss(z, target, q, gamma, n) / parts

    evaluate = jax.value_and_grad(share, argnums=(0, 1))

    def evaluated(q: Array, gamma: Array, z: Array, target: Array) -> Any:
        if parts == 1:
            return evaluate(q, gamma, z, target)

        def accumulate(total: Any, tasks: Any) -> Any:
            return jax.tree.map(jnp.add, total, evaluate(q, gamma, *tasks)), None

        nothing = (jnp.zeros((), z.dtype), (jnp.zeros_like(q), jnp.zeros_like(gamma)))
        return jax.lax.scan(accumulate, nothing, [x.reshape(parts, -1, *x.shape[1:]) for x in (z, target)])[0]

    jitted = jax.jit(evaluated)
    learned = _to_jax(q), _to_jax(gamma)
    loaded: dict[int, tuple[Array, Array]] = {}

    def step(z: torch.Tensor, target: torch.Tensor) -> Any:
        # The arrays keep the batch's memory alive, so that no other batch can come to lie at the same address.
        key = z.data_ptr()
        if key not in loaded:
            loaded[key] = (_to_jax(z), _to_jax(target))
        return jax.block_until_ready(jitted(*learned, *loaded[key]))

    return step


def _to_jax(tensor: torch.Tensor) -> Array:
    return jax.dlpack.from_dlpack(tensor.detach(), copy=False)

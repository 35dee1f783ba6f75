"""The peers in JAX under jit, for XLA: the forms of `formulations` that serve XLA best on a CPU. Needs JAX.

Batch first throughout: with the batch axis last XLA's loops over short leading axes are several times slower. Gradients
come from `jax.value_and_grad`, and on a CPU a large batch runs in blocks of tasks whose sums are added up, so that
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

from benchmarks.measure.data import Batch, Parameters
from benchmarks.measure.workloads import Workload
from benchmarks.peers.formulations import UNROLLED_CONTEXT

Array = Any  # jax.Array, which a type checker without JAX cannot name
Loss = Callable[[Array, Array, Array, Array, int], Array]

BLOCK = 10_000


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


def build(form: str, workload: Workload, parameters: Parameters) -> Callable[[Batch], Any]:
    """A function of a batch that waits for the loss and its gradients, (value, (q's, gamma's)), as JAX arrays.

    A batch becomes JAX arrays at its first call and is kept: later calls time the computation alone. On a GPU, JAX has
    a stream of its own; events on PyTorch's enclose its work, since the function returns when the results are there.
    """
    jax.config.update("jax_enable_x64", workload.dtype == "float64")
    # A GPU would multiply in TF32 by default, which the correctness gate turns away; nothing changes on a CPU.
    jax.config.update("jax_default_matmul_precision", "highest")
    loss = FORMS[form]
    in_blocks = parameters.q.device.type == "cpu" and workload.batch % BLOCK == 0
    blocks = workload.batch // BLOCK if in_blocks else 1

    def block(q: Array, gamma: Array, z: Array, target: Array) -> Array:
        return loss(z, target, q, gamma, workload.n) / blocks

    evaluate = jax.value_and_grad(block, argnums=(0, 1))

    def evaluated(q: Array, gamma: Array, z: Array, target: Array) -> Any:
        if blocks == 1:
            return evaluate(q, gamma, z, target)

        def accumulate(total: Any, tasks: Any) -> Any:
            return jax.tree.map(jnp.add, total, evaluate(q, gamma, *tasks)), None

        nothing = (jnp.zeros((), z.dtype), (jnp.zeros_like(q), jnp.zeros_like(gamma)))
        parts = [array.reshape(blocks, -1, *array.shape[1:]) for array in (z, target)]
        return jax.lax.scan(accumulate, nothing, parts)[0]

    jitted = jax.jit(evaluated)
    q, gamma = map(_to_jax, parameters)
    loaded: dict[int, tuple[Array, Array]] = {}

    def step(batch: Batch) -> Any:
        # The arrays keep the batch's memory alive, so that no other batch can come to lie at the same address.
        key = batch.z.data_ptr()
        if key not in loaded:
            loaded[key] = (_to_jax(batch.z), _to_jax(batch.target))
        return jax.block_until_ready(jitted(q, gamma, *loaded[key]))

    return step


def _to_jax(tensor: torch.Tensor) -> Array:
    return jax.dlpack.from_dlpack(tensor.detach(), copy=False)

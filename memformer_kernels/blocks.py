"""Public functions for other people's models: linear attention with factored heads, and memory registers across depth.

Both are differentiable, twice, in every floating argument, and take float32, float64, bfloat16 or float16 (sums are
float32, float64 for float64). Shapes and values that do not fit raise ValueError, wrong kinds raise TypeError and a
backend that is not available RuntimeError, before any work. Values of tensors on a GPU are not checked.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from memformer_kernels import ops, plan, sharding
from memformer_kernels.maths import factored
from memformer_kernels.maths import registers as depth
from memformer_kernels.maths.precision import compute_dtype
from memformer_kernels.problem_blocks import check_attention, check_history, check_step, check_update


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    context: int | Tensor | None = None,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """The mean of (q_t . k_i) v_i over the keys i that token t sees: (B, N, H, F), in the arguments' dtype.

    q, k (B, N, H, E) and v (B, N, H, F) are the heads' projections. Time and memory are linear in N: a head's keys are
    summed to one matrix S = sum_i k_i v_i^T of E by F, and out_t = q_t S / n.

    causal      token t sees the tokens up to itself: out_t = q_t S_t / t
    context     only the first `context` tokens are keys: an int, or an integer tensor (B,); None: all N. Every token
                is answered. Not beside causal
    mask        (B, N) bool, true for tokens that exist. Padding is neither read nor counted: it gets zeros and exactly
                zero gradient, whatever it holds. A sample without a key gets zeros
    cu_seqlens  (S + 1,) integers rising from 0 to N: sequences packed one behind the other along N, which do not see
                each other (rows of a batch share them). Not beside context or mask

    This is attention without softmax (Katharopoulos et al., arXiv 2006.16236) and, with Q and P factored into heads,
    that of Dutta & Sra (arXiv 2410.07263).
    """
    call = check_attention(q, k, v, causal, context, mask, cu_seqlens)
    chosen = plan.plan_attention(call.q.shape[3], call.v.shape[3], call.q.device.type, backend)
    if _spelled_out(backend):
        return factored.attend(call)
    made: Tensor = ops.linear_attention(*call, chosen.backend)
    return made


class AttentionState(NamedTuple):
    """What causal attention keeps of the tokens so far, whatever their number.

    sum: (B, H, E, F), sum of k_i v_i^T, float32 (float64 for float64). tokens: (B,) int64, how many there were.
    """

    sum: Tensor
    tokens: Tensor


def attention_state(k: Tensor, v: Tensor) -> AttentionState:
    """The state after the tokens of k (B, N, H, E) and v (B, N, H, F), N >= 0."""
    k, v = check_history(k, v)
    dtype = compute_dtype(k)
    total = k.to(dtype).permute(0, 2, 3, 1) @ v.to(dtype).transpose(1, 2)
    return AttentionState(total, torch.full((k.shape[0],), k.shape[1], dtype=torch.int64, device=k.device))


def attention_step(q: Tensor, k: Tensor, v: Tensor, state: AttentionState) -> tuple[Tensor, AttentionState]:
    """One more token of causal attention: (out (B, H, F), the new state) from q, k (B, H, E) and v (B, H, F).

    Equal to the last row of `linear_attention(causal=True)` over all tokens so far, at a cost that does not grow with
    them: 2 H E F multiply-adds a sample. Raises TypeError for dtypes that differ, or a state summed in another.
    """
    q, k, v = check_step(q, k, v, state)
    dtype = state.sum.dtype
    total = state.sum + k.to(dtype)[..., :, None] * v.to(dtype)[..., None, :]
    count = state.tokens + 1
    mean = (q.to(dtype)[..., None, :] @ total)[..., 0, :] / count[:, None, None]
    return mean.to(v.dtype), AttentionState(total, count)


_UPDATE = sharding.Rule(("z", "registers", "gamma"), frozenset({0, 1}))


def register_update(z: Tensor, registers: Sequence[Tensor], gamma: Tensor, *, backend: str = "auto") -> Tensor:
    """z + sum_j gamma_j * R_j in one pass: of z's shape and dtype.

    z may have any shape; registers are J >= 1 tensors of that shape and dtype; gamma (J, ...) is broadcastable behind
    its first axis: (J,) one weight a register, (J, D) one a feature, (J, N, 1) one a token, (J, N, D), (J, B, 1, 1)...;
    float32 or z's dtype. Forward and backward read every register once; see `nn.RegisterMemory` for its use.
    """
    if type(z) is not Tensor and sharding.is_sharded(z):
        # Before the axes are folded: a shard of tasks is no shard of what they are folded into.
        updated: Tensor = sharding.spread(_UPDATE, partial(register_update, backend=backend), (z, registers, gamma))
        return updated
    call = check_update(z, registers, gamma)
    chosen = plan.plan_update(call.z.dtype, call.z.device.type, backend)
    if _spelled_out(backend):
        return depth.update(*call).reshape(z.shape)
    made: Tensor = ops.register_update(*call, chosen.backend)
    return made.reshape(z.shape)


def _spelled_out(backend: str) -> bool:
    """Whether a program is being exported: it is made of PyTorch's own operations, to run where this package is not."""
    return backend in ("auto", "torch") and torch.compiler.is_exporting()

"""The public functions: the contract, in docstrings.

Tokens are rows. `z: (B, N, D)` holds B tasks of N tokens, each D = d + 1 wide: d features, then one response slot. The
first n = `context` tokens of a task are labelled examples; the others are queries, whose response slot is 0. In the
notation of Dutta & Sra (arXiv 2410.07263), with tokens as rows and all sums over the context,

    att_h(Z) = (1/n) Z Q_h (sum_{i<n} z_i z_i^T) P_h^T
    R_{l,h}  = att_{l,h}(Z_l) + beta_{l,h} * R_{l-1,h}                         R_{-1} = 0
    Z_{l+1}  = Z_l + sum_h gate_{l,h} sum_{j<=l} gamma_{l,j,h} * R_{j,h}

Parameters of a network of L layers and H heads:

    q      (L, H, D, D) dense, or (L, H, d, d): the block A of Q = [[A, 0], [0, 0]].
    p      None: response-only, P = [[0, 0], [0, 1]]; (L, H, d, d): the block Bm of P = [[Bm, 0], [0, 1]];
           (L, H, D, D): dense.
    gamma  None: each layer adds its own register (the linear transformer). 4 axes, broadcastable to (L, H, N, D): layer
           l weighs only its own register. 5 axes, broadcastable to (L, L, H, N, D): [l, j] weighs register j in layer
           l's update; entries j > l are ignored, and a first axis of size 1 says "shared by layers".
    beta   None: 0. Else broadcastable to (L, H, N, D).
    gate   None: 1. Else (H,) or (L, H).

and of the tasks:

    context  None: N - 1. An int from 1 to N, or an integer tensor (B,) for ragged contexts: each task divides by its
             own n.
    queries  None: N - context, or 1 for ragged contexts. The last `queries` tokens are predicted; the tokens between
             the context and them are padding: never read into a result, and of exactly zero gradient.

`backend` is "auto" or a backend's name, `algorithm` "auto", "gram" (all layers on D-by-D matrices; not where gamma or
beta has a token axis) or "token" (tokens updated layer by layer); `explain` says what "auto" chooses and why.

Everything is differentiable, twice, in every floating argument. float32 and float64 throughout; z may be bfloat16 or
float16 beside parameters in float32 or in z's dtype, and then Gram matrices, predictions and losses are float32 and
tokens keep z's dtype. Shapes and values that do not fit raise ValueError, wrong kinds raise TypeError, and a backend
that is not available RuntimeError, before any work.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memformer_kernels.backends.pytorch.attention import attend
from memformer_kernels.backends.pytorch.register_update import update
from memformer_kernels.calls import plan, problem
from memformer_kernels.calls.arguments import compute_dtype
from memformer_kernels.calls.attention import check_attention, check_history, check_step, check_update
from memformer_kernels.calls.checks import check_flag
from memformer_kernels.calls.memo import Settled, remembered
from memformer_kernels.torch_ops import gates, ops, sharding


def memformer_stack(
    z: Tensor,
    q: Tensor,
    p: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    gate: Tensor | None = None,
    *,
    context: int | Tensor | None = None,
    backend: str = "auto",
    algorithm: str = "auto",
) -> Tensor:
    """Tokens after all L layers, Z_L (B, N, D), in z's dtype.

    Every token past the context is a query: row i depends on the context and on itself, and its response slot is read
    as given. Arguments and errors: see the module's head.
    """
    settled = _settle_stack(z, q, p, gamma, beta, gate, context, backend, algorithm)
    q, gamma = gates.fold(gate, q, gamma, beta)
    return ops.stack(z, q, p, gamma, beta, settled.lengths, settled.context, settled.algorithm, settled.backend)


def memformer_predict(
    z: Tensor,
    q: Tensor,
    p: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    gate: Tensor | None = None,
    *,
    context: int | Tensor | None = None,
    queries: int | None = None,
    layers: bool = False,
    backend: str = "auto",
    algorithm: str = "auto",
) -> Tensor:
    """Predictions -[Z_L]_{query, D-1} of the last `queries` tokens, (B, queries).

    With `layers`, those after each layer, (L, B, queries). float64 for float64 tokens, else float32. Arguments and
    errors: see the module's head.
    """
    settled = _settle_prediction(z, q, p, gamma, beta, gate, context, queries, layers, backend, algorithm)
    count, lengths, predicted, algorithm, backend = settled
    q, gamma = gates.fold(gate, q, gamma, beta)
    after_layers = ops.predict(z, q, p, gamma, beta, lengths, count, algorithm, predicted, layers, backend)
    return after_layers if layers else after_layers.squeeze(0)  # an index's backward fills zeros and copies


def memformer_loss(
    z: Tensor,
    target: Tensor,
    q: Tensor,
    p: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    gate: Tensor | None = None,
    *,
    context: int | Tensor | None = None,
    queries: int | None = None,
    backend: str = "auto",
    algorithm: str = "auto",
) -> Tensor:
    """Mean squared error of the predictions against `target` (B, queries), a scalar.

    float64 for float64 tokens, else float32. The loss of no predictions is NaN, with zero gradients. Arguments and
    errors: see the module's head.
    """
    settled = _settle_loss(z, target, q, p, gamma, beta, gate, context, queries, backend, algorithm)
    count, lengths, predicted, algorithm, backend = settled
    q, gamma = gates.fold(gate, q, gamma, beta)
    tensors = (z, target, q, p, gamma, beta, lengths)
    enabled = torch.is_grad_enabled()
    wanted = tuple([enabled and x is not None and x.requires_grad for x in tensors])
    return ops.loss(*tensors, count, algorithm, predicted, wanted, backend)[0]


def memformer_layer(
    z: Tensor,
    q: Tensor,
    p: Tensor | None = None,
    registers: Sequence[Tensor] = (),
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    context: int | Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """One layer, for use inside other models: (z_next (B, N, D), register (B, R, N, D)), both in z's dtype.

    q, p and beta are one layer's, without the L axis. `registers` are those of the layers before, oldest first. gamma,
    broadcastable to (len(registers) + 1, H, N, D), weighs them and, last, the new one; None adds the new one alone.
    beta multiplies registers[-1]. R = H where gamma or beta has a head axis larger than 1, else 1 (heads summed).
    A gate folds into gamma. Other arguments and errors: see the module's head.
    """
    problem.check_registers(registers)
    settled = _settle_layer(z, q, p, gamma, beta, context, backend, *registers)
    return ops.layer(z, q, p, list(registers), gamma, beta, settled.lengths, settled.context, settled.backend)


def context_gram(z: Tensor, context: int | Tensor | None = None) -> Tensor:
    """The context Gram matrix sum_{i<n} z_i z_i^T, (B, D, D), not divided by n.

    float64 for float64 tokens, else float32. Gram matrices of disjoint parts of a context add up to that of the whole.
    """
    settled = _settle_gram(z, context)
    return ops.context_gram(z, settled.lengths, settled.context, settled.backend)


def lfom_solve(
    h: Tensor,
    b: Tensor,
    a: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    w0: Tensor | None = None,
    layers: bool = False,
    backend: str = "auto",
) -> Tensor:
    """The learned first-order method itself on a batch of quadratics w^T h w / 2 - b^T w:

        g_l = b - h w_l;   r_l = -a_l g_l + beta_l * r_{l-1};   w_{l+1} = w_l + sum_{j<=l} gamma_{l,j} * r_j

    h (B, d, d) is read in full, and its gradient is dense; b (B, d); preconditioners a (L, d, d); gamma with three
    axes, broadcastable to (L, L, d), or None for ones on the diagonal; beta broadcastable to (L, d), or None for 0;
    w0 (B, d), or None for 0. All float32 or all float64. Returns w_L (B, d), or w_1, ..., w_L (L, B, d) with `layers`.
    """
    settled = _settle_solution(h, b, a, gamma, beta, w0, layers, backend)
    iterates = ops.lfom_solve(h, b, a, gamma, beta, w0, layers, settled.backend)
    return iterates if layers else iterates.squeeze(0)


@remembered
def _settle_stack(*arguments: Any) -> Settled:
    *network, backend, algorithm = arguments
    checked = problem.check_network(*network)
    chosen = plan.plan_network(checked, backend, algorithm)
    return Settled(checked.context, checked.lengths, 0, chosen.algorithm, chosen.backend)


@remembered
def _settle_prediction(z: Tensor, *arguments: Any) -> Settled:
    *network, queries, layers, backend, algorithm = arguments
    checked = problem.check_network(z, *network)
    predicted = problem.check_queries(queries, z, checked.context, checked.lengths)
    check_flag("layers", layers)
    chosen = plan.plan_network(checked, backend, algorithm)
    return Settled(checked.context, checked.lengths, predicted, chosen.algorithm, chosen.backend)


@remembered
def _settle_loss(z: Tensor, target: Tensor, *arguments: Any) -> Settled:
    *network, queries, backend, algorithm = arguments
    checked = problem.check_network(z, *network)
    predicted = problem.check_queries(queries, z, checked.context, checked.lengths)
    problem.check_target(target, z, predicted)
    chosen = plan.plan_network(checked, backend, algorithm)
    return Settled(checked.context, checked.lengths, predicted, chosen.algorithm, chosen.backend)


@remembered
def _settle_layer(*arguments: Any) -> Settled:
    z, q, p, gamma, beta, context, backend, *registers = arguments
    checked = problem.check_layer(z, q, p, registers, gamma, beta, context)
    chosen = plan.plan_layer(checked, len(registers), backend)
    return Settled(checked.context, checked.lengths, 0, chosen.algorithm, chosen.backend)


@remembered
def _settle_gram(z: Tensor, context: int | Tensor | None) -> Settled:
    tokens = problem.check_tokens(z)
    count, lengths = problem.check_context(context, tokens)
    device, number = tokens.device.type, tokens.device.index or 0
    chosen = plan.plan_gram(tokens.shape[1], tokens.shape[2], lengths is not None, device, number)
    return Settled(count, lengths, 0, chosen.algorithm, chosen.backend)


@remembered
def _settle_solution(*arguments: Any) -> Settled:
    *quadratics, layers, backend = arguments
    checked = problem.check_quadratics(*quadratics)
    check_flag("layers", layers)
    chosen = plan.plan_quadratics(checked, backend)
    return Settled(0, None, 0, chosen.algorithm, chosen.backend)


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
        return attend(call)
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
        return update(*call).reshape(z.shape)
    made: Tensor = ops.register_update(*call, chosen.backend)
    return made.reshape(z.shape)


def _spelled_out(backend: str) -> bool:
    """Whether a program is being exported: it is made of PyTorch's own operations, to run where this package is not."""
    return backend in ("auto", "torch") and torch.compiler.is_exporting()

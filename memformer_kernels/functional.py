"""The public functions: the contract, in docstrings, each of which stands alone.

Tokens are rows. `z: (B, N, D)` holds B tasks of N tokens, each D = d + 1 wide: d features, then one response slot, or
as many as an argument `responses` says. The first n = `context` tokens of a task are labelled examples; the others are
queries, whose response slot is 0. In the notation of Dutta & Sra (arXiv 2410.07263), with tokens as rows and all sums
over the context,

    att_h(Z) = (1/n) Z Q_h (sum_{i<n} z_i z_i^T) P_h^T
    R_{l,h}  = att_{l,h}(Z_l) + beta_{l,h} * R_{l-1,h}                         R_{-1} = 0
    Z_{l+1}  = Z_l + sum_h gate_{l,h} sum_{j<=l} gamma_{l,j,h} * R_{j,h}

`linear_attention` and `register_update` are for models of your own, of any width.

Everything is differentiable, twice, in every floating argument. float32 and float64 throughout; tokens may be bfloat16
or float16 with parameters in float32 or in the tokens' dtype, and sums, predictions and losses are float32 then. Shapes
and values that do not fit raise ValueError, wrong kinds raise TypeError, and a backend that is not available
RuntimeError, before any work.

A call goes calls (check, plan, remember) -> torch_ops (one operation that PyTorch knows) -> backends.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from memformer_kernels.backends.pytorch.attention import attend
from memformer_kernels.backends.pytorch.register_update import update
from memformer_kernels.backends.pytorch.task_coefficients import solve as solve_by_task
from memformer_kernels.calls import call
from memformer_kernels.calls.arguments import OF_TASKS, Quadratics, compute_dtype
from memformer_kernels.calls.attention import check_history, check_step
from memformer_kernels.calls.checks import Algorithm, Backend
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
    responses: int = 1,
    weights: Tensor | None = None,
    backend: Backend = "auto",
    algorithm: Algorithm = "auto",
) -> Tensor:
    """Tokens after all L layers of a Memformer, Z_L.

        att_h(Z) = (1/n) Z Q_h (sum_{i<n} z_i z_i^T) P_h^T
        R_{l,h}  = att_{l,h}(Z_l) + beta_{l,h} * R_{l-1,h}
        Z_{l+1}  = Z_l + sum_h gate_{l,h} sum_{j<=l} gamma_{l,j,h} * R_{j,h}

    Every token past the context is a query: row i depends on the context and on itself, and its response slot is read
    as given.

    Args:
        z: tasks (B, N, D): N tokens of D - 1 features and a response slot; float32, float64, bfloat16 or float16.
        q: (L, H, d, d), the block A of Q = [[A, 0], [0, 0]], d = D - 1; or (L, H, D, D), dense. Parameters have z's
            dtype, or float32 where tokens are in half precision.
        p: None for the response-only P = [[0, 0], [0, 1]]; (L, H, d, d), the block Bm of P = [[Bm, 0], [0, 1]]; or
            (L, H, D, D), dense.
        gamma: None: each layer adds its own register (the linear Transformer). Four axes, broadcastable to
            (L, H, N, D): layer l weights its own register. Five axes, broadcastable to (L, L, H, N, D): [l, j] weights
            register j in layer l's update; entries j > l are ignored, and a first axis of 1 is shared by layers.
        beta: momentum, broadcastable to (L, H, N, D); None: 0.
        gate: (H,) or (L, H); None: 1.
        context: labelled tokens n of every task: an int from 1 to N, or an integer tensor (B,) of ragged contexts,
            each of which divides by its own n. None: N - 1.
        responses: m, the last slots of a token: d = D - m above, and P's corner is the identity. Responses share the
            attention; each has weights, and entries along the last axis of gamma and beta, of its own. Above 1 torch
            serves the call.
        weights: of the context's tokens (B, N), non-negative, in z's dtype or float32: (1/n) sum z_i z_i^T becomes
            sum w_i z_i z_i^T / sum w_i. A token of weight 0 counts as if it were not there, but for its own row of
            the result; a task of such tokens alone has a sum of 0. Weights past the context are not read. None: all 1.
        backend: "auto", "torch", "cpu", "cuda" or "triton"; `explain` says what "auto" chooses, and why.
        algorithm: "gram" (all layers on D-by-D matrices; not where gamma or beta has a token axis), "token" (tokens
            updated layer by layer) or "auto".

    Returns:
        (B, N, D), in z's dtype.

    Raises:
        ValueError: a shape or value that does not fit.
        TypeError: an argument of the wrong kind or dtype.
        RuntimeError: a backend that is not available, with the reason.

    Cost: of the order of B (N D^2 + L H D^3) multiply-adds in Gram space and of L H B (N D^2 + D^3) on tokens; for a
    response-only network of B (N D^2 + L H D^2) and of L H B N D.

    Example:
        >>> z, q = torch.randn(8, 21, 6), torch.randn(4, 1, 5, 5)
        >>> memformer_stack(z, q).shape
        torch.Size([8, 21, 6])
    """
    found = call.stack(z, q, p, gamma, beta, gate, context, responses, weights, backend, algorithm)
    count, lengths, _, form, runs_on, _ = found
    q, gamma = gates.fold(gate, q, gamma, beta)
    return ops.stack(z, q, p, gamma, beta, lengths, weights, count, form, runs_on)


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
    responses: int = 1,
    weights: Tensor | None = None,
    backend: Backend = "auto",
    algorithm: Algorithm = "auto",
) -> Tensor:
    """Predictions of a Memformer: minus the response slots of the last `queries` tokens of Z_L.

        att_h(Z) = (1/n) Z Q_h (sum_{i<n} z_i z_i^T) P_h^T
        R_{l,h}  = att_{l,h}(Z_l) + beta_{l,h} * R_{l-1,h}
        Z_{l+1}  = Z_l + sum_h gate_{l,h} sum_{j<=l} gamma_{l,j,h} * R_{j,h}

    A response-only network predicts w_L^T x with the weights of a learned first-order method (`lfom_solve`) on the
    context's least squares.

    Args:
        z: tasks (B, N, D): N tokens of D - 1 features and a response slot, 0 in queries; float32, float64, bfloat16 or
            float16.
        q: (L, H, d, d), the block A of Q = [[A, 0], [0, 0]], d = D - 1; or (L, H, D, D), dense. Parameters have z's
            dtype, or float32 where tokens are in half precision.
        p: None for the response-only P = [[0, 0], [0, 1]]; (L, H, d, d), the block Bm of P = [[Bm, 0], [0, 1]]; or
            (L, H, D, D), dense.
        gamma: None: each layer adds its own register (the linear Transformer). Four axes, broadcastable to
            (L, H, N, D): layer l weights its own register. Five axes, broadcastable to (L, L, H, N, D): [l, j] weights
            register j in layer l's update; entries j > l are ignored, and a first axis of 1 is shared by layers.
        beta: momentum, broadcastable to (L, H, N, D); None: 0.
        gate: (H,) or (L, H); None: 1.
        context: labelled tokens n of every task: an int from 1 to N, or an integer tensor (B,) of ragged contexts,
            each of which divides by its own n. None: N - 1.
        queries: how many of the last tokens are predicted. None: N - context, or 1 for ragged contexts. The tokens
            between the context and them are padding: not read into a result, and of exactly zero gradient.
        layers: predictions after each layer, not the last alone.
        responses: m, the last slots of a token: d = D - m above, and P's corner is the identity. Responses share the
            attention; each has weights, and entries along the last axis of gamma and beta, of its own. Above 1 torch
            serves the call.
        weights: of the context's tokens (B, N), non-negative, in z's dtype or float32: (1/n) sum z_i z_i^T becomes
            sum w_i z_i z_i^T / sum w_i. A token of weight 0 counts as if it were not there, whatever it holds; a task
            of such tokens alone has a sum of 0. Weights past the context are not read. None: all 1.
        backend: "auto", "torch", "cpu", "cuda" or "triton"; `explain` says what "auto" chooses, and why.
        algorithm: "gram" (all layers on D-by-D matrices; not where gamma or beta has a token axis), "token" (tokens
            updated layer by layer) or "auto".

    Returns:
        (B, queries), or (L, B, queries) with `layers`, and a last axis of `responses` where they are several; float64
        for float64 tokens, else float32.

    Raises:
        ValueError: a shape or value that does not fit.
        TypeError: an argument of the wrong kind or dtype.
        RuntimeError: a backend that is not available, with the reason.

    Cost: of the order of B (N D^2 + L H D^3) multiply-adds in Gram space and of L H B (N D^2 + D^3) on tokens; for a
    response-only network of B (N D^2 + L H D^2) and of L H B N D.

    Example:
        >>> z, q = torch.randn(8, 21, 6), torch.randn(4, 1, 5, 5)
        >>> memformer_predict(z, q, context=20).shape
        torch.Size([8, 1])
    """
    found = call.predict(z, q, p, gamma, beta, gate, context, queries, layers, responses, weights, backend, algorithm)
    count, lengths, predicted, form, runs_on, _ = found
    q, gamma = gates.fold(gate, q, gamma, beta)
    after_layers = ops.predict(z, q, p, gamma, beta, lengths, weights, count, form, predicted, layers, runs_on)
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
    responses: int = 1,
    weights: Tensor | None = None,
    backend: Backend = "auto",
    algorithm: Algorithm = "auto",
) -> Tensor:
    """Mean squared error of a Memformer's predictions, with its gradients worked out in the same pass.

        att_h(Z) = (1/n) Z Q_h (sum_{i<n} z_i z_i^T) P_h^T
        R_{l,h}  = att_{l,h}(Z_l) + beta_{l,h} * R_{l-1,h}
        Z_{l+1}  = Z_l + sum_h gate_{l,h} sum_{j<=l} gamma_{l,j,h} * R_{j,h}
        loss     = mean over tasks, queries and responses of (-[Z_L]_{query, response slot} - target)^2

    Args:
        z: tasks (B, N, D): N tokens of D - 1 features and a response slot, 0 in queries; float32, float64, bfloat16 or
            float16.
        target: responses of the queries (B, queries), or (B, queries, responses) where they are several; in z's dtype
            or float32.
        q: (L, H, d, d), the block A of Q = [[A, 0], [0, 0]], d = D - 1; or (L, H, D, D), dense. Parameters have z's
            dtype, or float32 where tokens are in half precision.
        p: None for the response-only P = [[0, 0], [0, 1]]; (L, H, d, d), the block Bm of P = [[Bm, 0], [0, 1]]; or
            (L, H, D, D), dense.
        gamma: None: each layer adds its own register (the linear Transformer). Four axes, broadcastable to
            (L, H, N, D): layer l weights its own register. Five axes, broadcastable to (L, L, H, N, D): [l, j] weights
            register j in layer l's update; entries j > l are ignored, and a first axis of 1 is shared by layers.
        beta: momentum, broadcastable to (L, H, N, D); None: 0.
        gate: (H,) or (L, H); None: 1.
        context: labelled tokens n of every task: an int from 1 to N, or an integer tensor (B,) of ragged contexts,
            each of which divides by its own n. None: N - 1.
        queries: how many of the last tokens are predicted. None: N - context, or 1 for ragged contexts. The tokens
            between the context and them are padding: not read into a result, and of exactly zero gradient.
        responses: m, the last slots of a token: d = D - m above, and P's corner is the identity. Responses share the
            attention; each has weights, and entries along the last axis of gamma and beta, of its own. Above 1 torch
            serves the call.
        weights: of the context's tokens (B, N), non-negative, in z's dtype or float32: (1/n) sum z_i z_i^T becomes
            sum w_i z_i z_i^T / sum w_i. A token of weight 0 counts as if it were not there, whatever it holds; a task
            of such tokens alone has a sum of 0. Weights past the context are not read. None: all 1.
        backend: "auto", "torch", "cpu", "cuda" or "triton"; `explain` says what "auto" chooses, and why.
        algorithm: "gram" (all layers on D-by-D matrices; not where gamma or beta has a token axis), "token" (tokens
            updated layer by layer) or "auto".

    Returns:
        A scalar; float64 for float64 tokens, else float32. The loss of no predictions is NaN, with zero gradients.

    Raises:
        ValueError: a shape or value that does not fit.
        TypeError: an argument of the wrong kind or dtype.
        RuntimeError: a backend that is not available, with the reason.

    Cost: of the order of B (N D^2 + L H D^3) multiply-adds in Gram space and of L H B (N D^2 + D^3) on tokens; for a
    response-only network of B (N D^2 + L H D^2) and of L H B N D, for the value; gradients take about twice that again.

    Example:
        >>> z, target, q = torch.randn(8, 21, 6), torch.randn(8, 1), torch.zeros(4, 1, 5, 5, requires_grad=True)
        >>> memformer_loss(z, target, q).backward()
    """
    found = call.loss(z, target, q, p, gamma, beta, gate, context, queries, responses, weights, backend, algorithm)
    count, lengths, predicted, form, runs_on, _ = found
    q, gamma = gates.fold(gate, q, gamma, beta)
    tensors = (z, target, q, p, gamma, beta, lengths, weights)
    enabled = torch.is_grad_enabled()
    wanted = tuple([enabled and x is not None and x.requires_grad for x in tensors])
    return ops.loss(*tensors, count, form, predicted, wanted, runs_on)[0]


def memformer_prefix_predict(
    z: Tensor,
    q: Tensor,
    p: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    gate: Tensor | None = None,
    *,
    first: int = 1,
    layers: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """Predictions of tokens first, ..., N - 1, each from all tokens before it, in one pass.

    What `memformer_predict` says of token i as the query, its own response slot 0, with tokens 0, ..., i - 1 as its
    context, whose mean is over i: in-context learning at every prompt length. The running Gram matrix grows by one
    token's product, and all layers run on it:

        G_i      = (1/i) sum_{k<i} z_k z_k^T                                       tokens counted from 0
        att_h(Z) = Z Q_h G_i(Z) P_h^T
        R_{l,h}  = att_{l,h}(Z_l) + beta_{l,h} * R_{l-1,h}
        Z_{l+1}  = Z_l + sum_h gate_{l,h} sum_{j<=l} gamma_{l,j,h} * R_{j,h}

    A task that ends early is padded behind its tokens, with finite numbers: no prediction reads a later token.

    Args:
        z: tasks (B, N, D): N >= 2 tokens of D - 1 features and a response each; float32, float64, bfloat16 or float16.
            The response of the last token is not read.
        q: (L, H, d, d), the block A of Q = [[A, 0], [0, 0]], d = D - 1; or (L, H, D, D), dense. Parameters have z's
            dtype, or float32 where tokens are in half precision.
        p: None for the response-only P = [[0, 0], [0, 1]]; (L, H, d, d), the block Bm of P = [[Bm, 0], [0, 1]]; or
            (L, H, D, D), dense.
        gamma: None: each layer adds its own register (the linear Transformer). Four axes, broadcastable to
            (L, H, 1, D): layer l weights its own register. Five axes, broadcastable to (L, L, H, 1, D): [l, j] weights
            register j in layer l's update; entries j > l are ignored, and a first axis of 1 is shared by layers.
        beta: momentum, broadcastable to (L, H, 1, D); None: 0.
        gate: (H,) or (L, H); None: 1.
        first: the first token that is predicted, an int from 1 to N - 1; so many tokens has the shortest prefix.
        layers: predictions after each layer, not the last alone.
        backend: "auto", "torch", "cpu", "cuda" or "triton"; `explain` says what "auto" chooses, and why.

    Returns:
        (B, N - first), or (L, B, N - first) with `layers`; float64 for float64 tokens, else float32.

    Raises:
        ValueError: a shape or value that does not fit; a token axis in gamma or beta.
        TypeError: an argument of the wrong kind or dtype.
        RuntimeError: a backend that is not available, with the reason.

    Cost: of the order of B N L H D^3 multiply-adds, or of B N L H D^2 for a response-only network. Matrices of few
    tokens at a time are kept; gradients work them out again.

    Example:
        >>> z, q = torch.randn(8, 21, 6), torch.randn(4, 1, 5, 5)
        >>> memformer_prefix_predict(z, q).shape
        torch.Size([8, 20])
    """
    found = call.prefix_predict(z, q, p, gamma, beta, gate, first, layers, backend)
    q, gamma = gates.fold(gate, q, gamma, beta)
    after_layers = ops.prefix_predict(z, q, p, gamma, beta, found.context, found.form, layers, found.backend)
    return after_layers if layers else after_layers.squeeze(0)


def memformer_prefix_loss(
    z: Tensor,
    target: Tensor,
    q: Tensor,
    p: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    gate: Tensor | None = None,
    *,
    first: int = 1,
    backend: Backend = "auto",
) -> Tensor:
    """Mean squared error of `memformer_prefix_predict`, with its gradients worked out in the same pass.

        G_i      = (1/i) sum_{k<i} z_k z_k^T                                       tokens counted from 0
        att_h(Z) = Z Q_h G_i(Z) P_h^T
        R_{l,h}  = att_{l,h}(Z_l) + beta_{l,h} * R_{l-1,h}
        Z_{l+1}  = Z_l + sum_h gate_{l,h} sum_{j<=l} gamma_{l,j,h} * R_{j,h}
        loss     = mean over tasks and tokens i >= first of (prediction of token i - target_i)^2

    All prefixes count alike. Tokens' own responses, `z[:, first:, -1]`, are the target of in-context learning.

    Args:
        z: tasks (B, N, D): N >= 2 tokens of D - 1 features and a response each; float32, float64, bfloat16 or float16.
            The response of the last token is not read.
        target: (B, N - first), in z's dtype or float32.
        q: (L, H, d, d), the block A of Q = [[A, 0], [0, 0]], d = D - 1; or (L, H, D, D), dense. Parameters have z's
            dtype, or float32 where tokens are in half precision.
        p: None for the response-only P = [[0, 0], [0, 1]]; (L, H, d, d), the block Bm of P = [[Bm, 0], [0, 1]]; or
            (L, H, D, D), dense.
        gamma: None: each layer adds its own register (the linear Transformer). Four axes, broadcastable to
            (L, H, 1, D): layer l weights its own register. Five axes, broadcastable to (L, L, H, 1, D): [l, j] weights
            register j in layer l's update; entries j > l are ignored, and a first axis of 1 is shared by layers.
        beta: momentum, broadcastable to (L, H, 1, D); None: 0.
        gate: (H,) or (L, H); None: 1.
        first: the first token that is predicted, an int from 1 to N - 1; so many tokens has the shortest prefix.
        backend: "auto", "torch", "cpu", "cuda" or "triton"; `explain` says what "auto" chooses, and why.

    Returns:
        A scalar; float64 for float64 tokens, else float32. The loss of no tasks is NaN, with zero gradients.

    Raises:
        ValueError: a shape or value that does not fit; a token axis in gamma or beta.
        TypeError: an argument of the wrong kind or dtype.
        RuntimeError: a backend that is not available, with the reason.

    Cost: of the order of B N L H D^3 multiply-adds, or of B N L H D^2 for a response-only network, for the value;
    gradients take about twice that again. Matrices of few tokens at a time are kept.

    Example:
        >>> z, q = torch.randn(8, 21, 6), torch.zeros(4, 1, 5, 5, requires_grad=True)
        >>> memformer_prefix_loss(z, z[:, 5:, -1], q, first=5).backward()
    """
    found = call.prefix_loss(z, target, q, p, gamma, beta, gate, first, backend)
    q, gamma = gates.fold(gate, q, gamma, beta)
    tensors = (z, target, q, p, gamma, beta)
    enabled = torch.is_grad_enabled()
    wanted = tuple([enabled and x is not None and x.requires_grad for x in tensors])
    return ops.prefix_loss(*tensors, found.context, found.form, wanted, found.backend)[0]


def memformer_layer(
    z: Tensor,
    q: Tensor,
    p: Tensor | None = None,
    registers: Sequence[Tensor] = (),
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    context: int | Tensor | None = None,
    weights: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """One layer of a Memformer, for use inside other models.

        R_h    = (1/n) Z Q_h (sum_{i<n} z_i z_i^T) P_h^T + beta_h * registers[-1]_h
        Z_next = Z + sum_h sum_j gamma_{j,h} * R_{j,h},    R_j the registers given and, last, the new one

    A gate folds into gamma.

    Args:
        z: tokens (B, N, D); float32, float64, bfloat16 or float16.
        q: one layer's (H, d, d), the block A of Q = [[A, 0], [0, 0]], d = D - 1; or (H, D, D), dense. Parameters have
            z's dtype, or float32 where tokens are in half precision.
        p: None for the response-only P = [[0, 0], [0, 1]]; (H, d, d), the block Bm of P = [[Bm, 0], [0, 1]]; or
            (H, D, D), dense.
        registers: those of the layers before, oldest first, each (B, R, N, D) in z's dtype. R = H where gamma or beta
            has a head axis larger than 1, else 1 (heads summed).
        gamma: broadcastable to (len(registers) + 1, H, N, D): weights of the registers and, last, of the new one.
            None: the new one alone is added.
        beta: broadcastable to (H, N, D), multiplies registers[-1]; None: 0.
        context: labelled tokens n: an int from 1 to N, or an integer tensor (B,) of ragged contexts. None: N - 1.
        weights: of the context's tokens (B, N), as in `memformer_stack`. None: all 1.
        backend: "auto", "torch", "cpu", "cuda" or "triton"; `explain` says what "auto" chooses, and why.

    Returns:
        (z_next (B, N, D), register (B, R, N, D)), both in z's dtype.

    Raises:
        ValueError: a shape or value that does not fit.
        TypeError: an argument of the wrong kind or dtype.
        RuntimeError: a backend that is not available, with the reason.

    Cost: of the order of B (N D^2 + H (N D^2 + D^3)) multiply-adds for the attention and len(registers) R B N D for the
    memory.

    Example:
        >>> z, q = torch.randn(8, 21, 6), torch.randn(1, 5, 5)
        >>> z, register = memformer_layer(z, q)
        >>> z, register = memformer_layer(z, q, registers=[register], gamma=torch.ones(2, 1, 1, 1))
    """
    count, lengths, _, form, runs_on, _ = call.layer(z, q, p, registers, gamma, beta, context, weights, backend)
    return ops.layer(z, q, p, list(registers), gamma, beta, lengths, weights, count, form, runs_on)


def context_gram(z: Tensor, context: int | Tensor | None = None) -> Tensor:
    """The context Gram matrix sum_{i<n} z_i z_i^T, not divided by n.

    Gram matrices of disjoint parts of a context add up to that of the whole.

    Args:
        z: tokens (B, N, D); float32, float64, bfloat16 or float16.
        context: tokens n that are summed: an int from 1 to N, or an integer tensor (B,). None: N - 1.

    Returns:
        (B, D, D); float64 for float64 tokens, else float32.

    Raises:
        ValueError: a shape or value that does not fit.
        TypeError: an argument of the wrong kind or dtype.

    Cost: of the order of B n D^2 multiply-adds; tokens are read once.

    Example:
        >>> context_gram(torch.ones(2, 4, 3), 4)[0, 0]
        tensor([4., 4., 4.])
    """
    found = call.context_gram(z, context)
    return ops.context_gram(z, found.lengths, found.context, found.backend)


def lfom_solve(
    h: Tensor,
    b: Tensor,
    a: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    w0: Tensor | None = None,
    level: Tensor | float | None = None,
    lower: Tensor | float | None = None,
    upper: Tensor | float | None = None,
    radius: Tensor | float | None = None,
    layers: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """The learned first-order method itself on a batch of quadratics w^T h w / 2 - b^T w.

        g_l = b - h w_l;   r_l = -a_l g_l + beta_l * r_{l-1};   w_{l+1} = prox_l(w_l + sum_{j<=l} gamma_{l,j} * r_j)

    A preconditioner a = -A descends, with A positive definite. Without `level`, `lower`, `upper` and `radius` there is
    no prox. With them it is that of level ||w||_1 over lower <= w <= upper, or the projection onto ||w|| <= radius:

        prox(w) = clamp(sign(w) * max(|w| - level, 0), lower, upper)        prox(w) = w min(1, radius / ||w||)

    `level` alone is soft thresholding (ISTA; LISTA of Gregor & LeCun, 2010), `lower=0.0` non-negativity, both of them
    non-negative sparse coding. Registers hold gradients at the weights after each prox, and not what a prox took away.

    Args:
        h: (B, d, d), read in full; its gradient is dense. All tensors are float32, or all float64.
        b: (B, d); or (B, d, m), the columns of m quadratics with one h, which one product a step serves: torch's.
        a: preconditioners (L, d, d).
        gamma: broadcastable to (L, L, d), with three axes; entries j > l are ignored. None: ones on the diagonal. With
            four axes, broadcastable to (B, L, L, d), each task has coefficients of its own, as conjugate gradients
            have: torch's, and without a prox.
        beta: broadcastable to (L, d), or with three axes to (B, L, d), likewise of each task; None: 0.
        w0: where the method starts, of b's shape, with no prox; None: 0.
        level: threshold, broadcastable to (L, d), or a number of at least 0. A tensor's values below 0 count as 0, with
            gradient zero there: learn softplus of a parameter where that might happen. None: 0.
        lower: least weight, broadcastable to (L, d), or a number. None: no bound.
        upper: largest weight, alike; it has the last word where a tensor puts it below `lower`. None: no bound.
        radius: of a ball round 0, broadcastable to (L, 1), or a number of at least 0; alone, without the three above. A
            tensor's values below 0 count as 0. None: no ball.
        layers: the weights after each step, not the last alone.
        backend: "auto", "torch", "cpu", "cuda" or "triton"; `explain` says what "auto" chooses, and why. A prox runs on
            the first three.

    Returns:
        w_L, of b's shape, or w_1, ..., w_L with an axis L in front with `layers`.

    Raises:
        ValueError: a shape or value that does not fit; a backend without a prox, or without coefficients of each
            task, where there are some; both of them at once.
        TypeError: an argument of the wrong kind or dtype.
        RuntimeError: a backend that is not available, with the reason.

    Cost: of the order of 2 L B d^2 multiply-adds; h is read once where it is tiny.

    Example:
        >>> h, b, a = torch.eye(2).expand(1, 2, 2), torch.ones(1, 2), -0.5 * torch.eye(2).expand(3, 2, 2)
        >>> lfom_solve(h, b, a)
        tensor([[0.8750, 0.8750]])
        >>> lfom_solve(h, b, a, level=0.25)
        tensor([[0.4375, 0.4375]])
    """
    prox = (level, lower, upper, radius)
    found = call.lfom_solve(h, b, a, gamma, beta, w0, *prox, layers, backend)
    chosen = found.backend
    if found.form == OF_TASKS:
        iterates = solve_by_task(Quadratics(h, b, a, gamma, beta, w0), layers)
    elif level is lower is upper is radius is None:
        iterates = ops.lfom_solve(h, b, a, gamma, beta, w0, layers, chosen)
    else:
        tensors = [_as_tensor(x, h) for x in prox]
        iterates = ops.proximal_solve(h, b, a, gamma, beta, w0, *tensors, layers, chosen)
    return iterates if layers else iterates.squeeze(0)


def _as_tensor(value: Tensor | float | None, h: Tensor) -> Tensor | None:
    """A number as a tensor that each process has."""
    if value is None or isinstance(value, Tensor):
        return value
    return sharding.on_every_process(torch.full((), value, dtype=compute_dtype(h), device=h.device), h)


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    context: int | Tensor | None = None,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Attention without softmax, with Q and P factored into heads: out_t = q_t (sum_i k_i v_i^T) / n.

    The mean runs over the n keys i that token t sees. This is the attention of Katharopoulos et al. (arXiv 2006.16236)
    and, for factored heads, of Dutta & Sra (arXiv 2410.07263).

    Args:
        q: queries (B, N, H, E); float32, float64, bfloat16 or float16.
        k: keys, of q's shape and dtype.
        v: values (B, N, H, F), in q's dtype.
        causal: token t sees the tokens up to itself: out_t = q_t S_t / t.
        context: the first `context` tokens alone are keys, and every token is answered: an int, or an integer tensor
            (B,). None: all N. Not together with causal.
        mask: (B, N) bool, true for tokens that exist; None: all. Padding is neither read nor counted: it gets zeros
            and exactly zero gradient, whatever it holds. A sample without a key gets zeros.
        cu_seqlens: (S + 1,) integers rising from 0 to N: sequences packed one behind the other along N, which do not
            see each other (rows of a batch share them). Not together with context or mask. None: one sequence.
        backend: "auto", "torch", "cpu" or "triton"; `explain` says what "auto" chooses, and why.

    Returns:
        (B, N, H, F), in the arguments' dtype; sums are kept in float32, in float64 for float64.

    Raises:
        ValueError: a shape or value that does not fit; values on a GPU are not checked.
        TypeError: an argument of the wrong kind or dtype.
        RuntimeError: a backend that is not available, with the reason.

    Cost: of the order of 2 B N H E F multiply-adds, and with `causal` C (E + F) more a token and head for the chunks of
    C tokens that are summed together; time and memory are linear in N.

    Example:
        >>> q, k, v = (torch.randn(2, 100, 4, 16) for _ in range(3))
        >>> linear_attention(q, k, v, causal=True).shape
        torch.Size([2, 100, 4, 16])
    """
    tokens, chosen = call.linear_attention(q, k, v, causal, context, mask, cu_seqlens, backend)
    if _spelled_out(backend):
        return attend(tokens)
    made: Tensor = ops.linear_attention(*tokens, chosen.backend)
    return made


class AttentionState(NamedTuple):
    """What causal attention keeps of the tokens so far, whatever their number.

    Attributes:
        sum: (B, H, E, F), sum of k_i v_i^T, float32 (float64 for float64).
        tokens: (B,) int64, how many there were.
    """

    sum: Tensor
    tokens: Tensor


def attention_state(k: Tensor, v: Tensor, mask: Tensor | None = None) -> AttentionState:
    """The state of causal attention after some tokens.

    Args:
        k: keys (B, N, H, E), N >= 0; float32, float64, bfloat16 or float16.
        v: values (B, N, H, F), in k's dtype.
        mask: (B, N) bool, true for tokens that exist; None: all. Padding is neither read nor counted.

    Returns:
        The sum over the tokens of k_i v_i^T, and their number.

    Raises:
        ValueError: a shape that does not fit.
        TypeError: an argument of the wrong kind or dtype.

    Cost: of the order of B N H E F multiply-adds.

    Example:
        >>> attention_state(torch.randn(2, 9, 4, 16), torch.randn(2, 9, 4, 16)).tokens
        tensor([9, 9])
    """
    k, v, mask = check_history(k, v, mask)
    dtype = compute_dtype(k)
    counts = torch.full((k.shape[0],), k.shape[1], dtype=torch.int64, device=k.device)
    if mask is not None:
        there, counts = mask[..., None, None], mask.sum(1)
        k, v = torch.where(there, k, 0.0), torch.where(there, v, 0.0)
    return AttentionState(k.to(dtype).permute(0, 2, 3, 1) @ v.to(dtype).transpose(1, 2), counts)


def attention_step(q: Tensor, k: Tensor, v: Tensor, state: AttentionState) -> tuple[Tensor, AttentionState]:
    """One more token of causal attention.

    Equal to the last row of `linear_attention(causal=True)` over all tokens so far, at a cost that does not grow with
    them.

    Args:
        q: the token's query (B, H, E); float32, float64, bfloat16 or float16.
        k: its key (B, H, E), in q's dtype.
        v: its value (B, H, F), in q's dtype.
        state: that of the tokens before it.

    Returns:
        (out (B, H, F) in v's dtype, the new state).

    Raises:
        ValueError: a shape that does not fit.
        TypeError: an argument of the wrong kind, dtypes that differ, or a state summed in another.

    Cost: of the order of 2 B H E F multiply-adds.

    Example:
        >>> state = attention_state(torch.randn(2, 9, 4, 16), torch.randn(2, 9, 4, 16))
        >>> out, state = attention_step(torch.randn(2, 4, 16), torch.randn(2, 4, 16), torch.randn(2, 4, 16), state)
    """
    q, k, v = check_step(q, k, v, state)
    dtype = state.sum.dtype
    total = state.sum + k.to(dtype)[..., :, None] * v.to(dtype)[..., None, :]
    count = state.tokens + 1
    mean = (q.to(dtype)[..., None, :] @ total)[..., 0, :] / count[:, None, None]
    return mean.to(v.dtype), AttentionState(total, count)


_UPDATE = sharding.Rule(("z", "registers", "gamma"), frozenset({0, 1}))


def register_update(z: Tensor, registers: Sequence[Tensor], gamma: Tensor, *, backend: Backend = "auto") -> Tensor:
    """The memory's update by itself, z + sum_j gamma_j * R_j, in one pass; see `nn.RegisterMemory` for its use.

    Args:
        z: of any shape; float32, float64, bfloat16 or float16.
        registers: J >= 1 tensors of z's shape and dtype.
        gamma: (J, ...), broadcastable behind its first axis: (J,) one weight a register, (J, D) one a feature,
            (J, N, 1) one a token, (J, N, D), (J, B, 1, 1)...; float32 or z's dtype.
        backend: "auto", "torch", "cpu" or "triton"; `explain` says what "auto" chooses, and why.

    Returns:
        Of z's shape and dtype.

    Raises:
        ValueError: a shape that does not fit.
        TypeError: an argument of the wrong kind or dtype.
        RuntimeError: a backend that is not available, with the reason.

    Cost: J multiply-adds an entry; forward and backward read each register once.

    Example:
        >>> z = torch.zeros(2, 3)
        >>> register_update(z, [z + 1, z + 2], torch.tensor([1.0, 10.0]))
        tensor([[21., 21., 21.],
                [21., 21., 21.]])
    """
    if type(z) is not Tensor and sharding.is_sharded(z):
        # Before the axes are folded: a shard of tasks is no shard of what they are folded into.
        updated: Tensor = sharding.spread(_UPDATE, partial(register_update, backend=backend), (z, registers, gamma))
        return updated
    tokens, chosen = call.register_update(z, registers, gamma, backend)
    if _spelled_out(backend):
        return update(*tokens).reshape(z.shape)
    made: Tensor = ops.register_update(*tokens, chosen.backend)
    return made.reshape(z.shape)


def _spelled_out(backend: str) -> bool:
    """Whether a program is being exported: it is made of PyTorch's own operations, to run where this package is not."""
    return backend in ("auto", "torch") and torch.compiler.is_exporting()

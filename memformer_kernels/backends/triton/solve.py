"""Response-only networks in Gram space, and the first-order method itself: the state is a vector.

    g_l = b + H s_l;   r_{l,h} = A_{l,h} g_l + beta * r_{l-1,h};   s_{l+1} = s_l + sum_h sum_{j<=l} gamma * r_{j,h}

A prediction is -z . (s, 1). Where a program sums the Gram matrix of a network itself, vectors are D = d + 1 long and
end in the constant 1, so that b is the last column; of a matrix that it is given the last row is b, and vectors are d
long, which is often a power of 2. A program owns TASKS tasks at a time and keeps their matrices in registers for all
layers; the vectors of a layer go to its scratch, which the first-level cache holds. Per task it reads the context once
(or the matrix) and the queries; n D^2 / 2 + L (D^2 + R D^2 + L R D) multiply-adds.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from memformer_kernels.backends.triton import rules
from memformer_kernels.backends.triton.coefficients import Coefficient
from memformer_kernels.backends.triton.gram import gram
from memformer_kernels.backends.triton.launch import architecture, launch, scratch_of, strides_of, triton_type
from memformer_kernels.backends.triton.matrices import laid, task_matrix, times_own, times_shared
from memformer_kernels.backends.triton.tiles import inner, load_counts, wide

QUERIES_AT_ONCE = 8


class Tensors(NamedTuple):
    """z (B, N, D) of a network, or h in its place; matrix (B, D, D) or None, offset and start (B, d) or None.

    a (L, R, d, d) and turned, its transposes, both `laid`; gamma, beta in full or None. For a quadratic, which has no
    tokens, h stands in for their pointer.
    """

    z: Tensor
    matrix: Tensor | None
    offset: Tensor | None
    start: Tensor | None
    lengths: Tensor | None
    a: Tensor
    turned: Tensor
    gamma: Tensor | None
    beta: Tensor | None


class Sizes(NamedTuple):
    """Tasks, tokens, longest context and layers."""

    batch: Any
    tokens: Any
    context: Any
    layers: Any


class Results(NamedTuple):
    """Queries that are predicted, and layers whose predictions or weights are results."""

    queries: Any
    outputs: Any


class Constants(NamedTuple):
    """WIDTH: of vectors. SIDE: of a given matrix. NETWORK: not a quadratic. TOKENS: matrices come from tokens.

    HELD: matrices of tasks stay in registers. TASKS: at a time. LANES: whose vectors are kept.

    Of the backward alone: LOSS: the error comes from targets. ROWS: tokens at a
    time. TILE: a side of a product over LANES tasks.
    """

    WIDTH: int
    FEATURES: int
    SIDE: int
    NETWORK: bool
    TOKENS: bool
    HELD: bool
    RULE: int
    TASKS: int
    LANES: int
    BLOCK: int
    QUERIES: int
    CHUNK: int
    ACC: tl.dtype
    PRECISION: str
    LOSS: bool = False
    ROWS: int = 0
    TILE: int = 0


class Slots(NamedTuple):
    """Where in a program's scratch, in vectors of all its tasks, each kind begins; registers (L, R) lie first.

    Residuals (L), states (L + 1), and of the backward gradients of registers (L, R) and of updates (L). A forward's
    scratch ends where `register_grads` begin.
    """

    residuals: Any
    states: Any
    register_grads: Any
    end: Any


@triton.jit
def slots_of(layers, kept):
    """The one layout of scratch, of kernels and, as a plain function, of launches."""
    residuals = layers * kept
    states = residuals + layers
    register_grads = layers * kept + 2 * layers + 1
    return Slots(residuals, states, register_grads, register_grads + layers * kept + layers)


@triton.jit
def gradients_of(first, layers, kept, slot):
    """Where gradients of registers begin in scratch from `first` on, and where those of updates, which follow them."""
    register_grads = first + slots_of(layers, kept).register_grads * slot
    return register_grads, register_grads + layers * kept * slot


class Tasks(NamedTuple):
    """A program's tasks (TASKS, 1): which, their places in scratch, which exist, and their context lengths.

    last: of all tasks. memory: of the program. vectors: a task's part of the first one. slot: numbers of one for all
    tasks.
    """

    i_task: Any
    last: Any
    i_lane: Any
    m_task: Any
    count: Any
    memory: Any
    vectors: Any
    slot: Any


@triton.jit
def own_tasks(t, i_task, i_lane, memory, sizes, C: tl.constexpr):
    """The tasks i_task, whose vectors are the i_lane-th of `memory`."""
    m_task = i_task < sizes.batch
    count = load_counts(t.lengths, i_task, sizes.context, m_task)[:, :, None]
    vectors = memory + i_lane * C.WIDTH + tl.arange(0, C.BLOCK)[None, :]
    return Tasks(i_task, sizes.batch - 1, i_lane, m_task, count, memory, vectors, tl.cast(C.LANES * C.WIDTH, tl.int64))


@triton.jit
def load_weight(coefficient, index, mask, C: tl.constexpr):
    """One vector of a coefficient (1, BLOCK)."""
    i = tl.arange(0, C.BLOCK)[None, :]
    return tl.load(coefficient + tl.cast(index, tl.int64) * C.WIDTH + i, mask=mask, other=0.0)


@triton.jit
def first_state(t, own, C: tl.constexpr):
    """0 for a network, (0, 1) if its matrix comes from tokens; minus the first weights for a quadratic."""
    i = tl.arange(0, C.BLOCK)[None, :]
    state = tl.zeros((C.TASKS, C.BLOCK), C.ACC)
    if C.TOKENS:
        state += tl.where(i == C.FEATURES, 1.0, 0.0).to(C.ACC)
    if t.start is not None:
        state -= tl.load(t.start + own.i_task * C.WIDTH + i, mask=own.m_task & (i < C.WIDTH), other=0.0)
    return state


@triton.jit
def run_layers(t, tile, own, layers, kept, KEEP: tl.constexpr, C: tl.constexpr):
    """All layers from the first state; vectors go to scratch, with KEEP residuals and states too. The last state."""
    i = tl.arange(0, C.BLOCK)[None, :]
    m_vector = own.m_task & (i < C.WIDTH)
    m_feature = i < C.FEATURES
    slot = own.slot
    slots = slots_of(layers, kept)
    offset = tl.zeros((C.TASKS, C.BLOCK), C.ACC)
    if t.offset is not None:
        offset += tl.load(t.offset + own.i_task * C.WIDTH + i, mask=m_vector, other=0.0)
    if C.SIDE > C.WIDTH:
        p_last = t.matrix + (own.i_task * C.SIDE + C.FEATURES) * C.SIDE + i
        offset += tl.load(p_last, mask=m_vector, other=0.0)
    state = first_state(t, own, C)
    for layer in range(layers):
        residual = tl.where(m_feature, offset + times_own(t, tile, state, own, C), 0.0)
        if KEEP:
            tl.store(own.vectors + (slots.residuals + layer) * slot, residual, mask=m_vector)
            tl.store(own.vectors + (slots.states + layer) * slot, state, mask=m_vector)
        for head in range(kept):
            index = layer * kept + head
            register = times_shared(t.turned, index, residual, C)
            if t.beta is not None:
                decay = load_weight(t.beta, index, i < C.WIDTH, C)
                before = tl.load(own.vectors + (index - kept) * slot, mask=m_vector & (layer > 0), other=0.0)
                register += decay * before
            tl.store(own.vectors + index * slot, register, mask=m_vector)
            if C.RULE == 0:
                state += register
            else:
                i_own = index if C.RULE == 1 else (layer * layers + layer) * kept + head
                state += load_weight(t.gamma, i_own, m_feature, C) * register
            if C.RULE == 2:
                for past in range(layer):
                    weight = load_weight(t.gamma, (layer * layers + past) * kept + head, m_feature, C)
                    state += weight * tl.load(own.vectors + (past * kept + head) * slot, mask=m_vector, other=0.0)
        tl.debug_barrier()
    if KEEP:
        tl.store(own.vectors + (slots.states + layers) * slot, state, mask=m_vector)
    return state


@triton.jit
def predictions(rows, state, strides, i_query, queries, own, C: tl.constexpr):
    """Minus the response of the query tokens i_query (QUERIES,) at a state (TASKS, BLOCK)."""
    _, z_row, z_column = strides
    i = tl.arange(0, C.BLOCK)[None, None, :]
    m_token = own.m_task[:, :, None] & (i_query < queries)[None, :, None] & (i < C.WIDTH)
    tokens = tl.load(rows + i_query[None, :, None] * z_row + i * z_column, mask=m_token, other=0.0).to(C.ACC)
    values = -inner(tokens, state[:, None, :], 2)
    if not C.TOKENS:
        p_response = rows + i_query[None, :, None] * z_row + C.FEATURES * z_column
        m_query = own.m_task[:, :, None] & (i_query < queries)[None, :, None]
        values -= tl.sum(tl.load(p_response, mask=m_query, other=0.0).to(C.ACC), 2)
    return values


@triton.jit(do_not_specialize=["batch", "tokens", "context", "layers", "kept", "queries", "outputs"])
def solve_kernel(
    t,
    out,
    scratch,
    strides,
    batch,
    tokens,
    context,
    layers,
    kept,
    queries,
    outputs,
    scratch_size,
    C: tl.constexpr,
):
    """Predictions (outputs, B, queries) of a network, or the weights (outputs, B, d) of a quadratic.

    `outputs` is L for those after every layer, or 1 for the last. Tasks go to programs in blocks of TASKS.
    """
    z_strides = wide(strides)
    sizes = Sizes(batch, tokens, context, layers)
    results = Results(queries, outputs)
    memory = scratch + tl.cast(tl.program_id(0), tl.int64) * scratch_size
    i_lane = tl.arange(0, C.TASKS)[:, None]
    i = tl.arange(0, C.BLOCK)[None, :]
    for block in range(tl.program_id(0), tl.cdiv(sizes.batch, C.TASKS), tl.num_programs(0)):
        i_task = tl.cast(block, tl.int64) * C.TASKS + i_lane
        own = own_tasks(t, i_task, i_lane, memory, sizes, C)
        m_vector = own.m_task & (i < C.WIDTH)
        tile = task_matrix(t, z_strides, own, sizes.context, C) if C.HELD else None
        run_layers(t, tile, own, sizes.layers, kept, True, C)
        tl.debug_barrier()
        states = own.vectors + slots_of(sizes.layers, kept).states * own.slot
        for output in range(results.outputs):
            layer = sizes.layers - results.outputs + output + 1
            state = tl.load(states + layer * own.slot, mask=m_vector, other=0.0)
            o_output = tl.cast(output, tl.int64) * sizes.batch + i_task
            if C.NETWORK:
                rows = t.z + i_task[:, :, None] * z_strides[0] + (sizes.tokens - queries) * z_strides[1]
                for first in range(0, queries, C.QUERIES):
                    i_query = first + tl.arange(0, C.QUERIES)
                    values = predictions(rows, state, z_strides, i_query, queries, own, C)
                    m_query = own.m_task & (i_query < queries)[None, :]
                    tl.store(out + o_output * queries + i_query[None, :], values, mask=m_query)
            else:
                tl.store(out + o_output * C.WIDTH + i, -state, mask=m_vector)
        tl.debug_barrier()


def sums_tokens(z: Tensor | None, matrix: Tensor | None) -> bool:
    """Whether programs sum the Gram matrices of their tasks themselves. Vectors are as wide as tokens then."""
    return z is not None and matrix is None and not rules.gram_apart(z.shape[2])


class Recurrence(NamedTuple):
    """z (B, N, D) with its contexts, or h (B, d, d), b and start (B, d); a (L, R, d, d); coefficients in full.

    matrix: mean context Gram matrices (B, D, D), contiguous, which are not computed from z then.
    """

    a: Tensor
    rule: int
    gamma: Coefficient
    beta: Coefficient
    z: Tensor | None = None
    lengths: Tensor | None = None
    context: int = 0
    h: Tensor | None = None
    b: Tensor | None = None
    start: Tensor | None = None
    matrix: Tensor | None = None

    @property
    def tasks(self) -> Tensor:
        """What every task has of its own: z or h."""
        first = self.h if self.z is None else self.z
        assert first is not None
        return first

    @property
    def width(self) -> int:
        """Of vectors."""
        return self.tasks.shape[2] if sums_tokens(self.z, self.matrix) else self.a.shape[3]

    def config(self, gradients: bool = False) -> rules.Config:
        """gradients: those of the tasks' matrices are wanted."""
        tokens, dtype = self.tasks.shape[1], self.a.dtype
        return rules.vectors_config(self.width, tokens, dtype, architecture(self.a.device), gradients)

    def task_matrix(self) -> Tensor | None:
        """The matrices that kernels are given: h, or Gram matrices that are given or that another kernel computes."""
        if self.z is None:
            return self.h
        if self.matrix is not None or sums_tokens(self.z, None):
            return self.matrix
        return gram(self.z, self.lengths, self.context, mean=True).contiguous()

    def arguments(self, queries: int, outputs: int, config: rules.Config) -> dict[str, Any]:
        """What both kernels are told."""
        batch, tokens, side = self.tasks.shape
        layers, kept, features, _ = self.a.shape
        matrix, a, turned = self.task_matrix(), laid(self.a, config.block), laid(self.a.mT, config.block)
        gamma, beta = self.gamma.values, self.beta.values
        return {
            "t": Tensors(self.tasks, matrix, self.b, self.start, self.lengths, a, turned, gamma, beta),
            "strides": (0, 0, 0) if self.z is None else strides_of(self.z),
            "batch": batch,
            "tokens": tokens,
            "context": self.context,
            "layers": layers,
            "kept": kept,
            "queries": queries,
            "outputs": outputs,
            "C": Constants(
                WIDTH=self.width,
                FEATURES=features,
                SIDE=side,
                NETWORK=self.z is not None,
                TOKENS=matrix is None,
                HELD=matrix is None or rules.holds_matrices(config.block),
                RULE=self.rule,
                TASKS=config.tasks,
                LANES=config.tasks,
                BLOCK=config.block,
                QUERIES=QUERIES_AT_ONCE,
                CHUNK=config.chunk,
                ACC=triton_type(self.a.dtype),
                PRECISION=rules.precision(self.a.dtype),
            ),
            **config.options,
        }


def solve(recurrence: Recurrence, queries: int, outputs: int) -> Tensor:
    """Predictions (outputs, B, queries) of a network, or weights (outputs, B, d) of a quadratic."""
    arguments = recurrence.arguments(queries, outputs, recurrence.config())
    a, constants, batch = recurrence.a, arguments["C"], recurrence.tasks.shape[0]
    out = a.new_empty((outputs, batch, constants.WIDTH if recurrence.z is None else queries))
    size = slots_of.fn(*a.shape[:2]).register_grads * constants.LANES * constants.WIDTH
    programs, scratch = scratch_of(a, triton.cdiv(batch, constants.TASKS), size, arguments["num_warps"])
    if out.numel():
        launch(solve_kernel, programs, out=out, scratch=scratch, scratch_size=size, **arguments)
    return out

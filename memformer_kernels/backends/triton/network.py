"""Networks of any structure: tokens or predictions after the layers of `layers`, in one launch."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from memformer_kernels.backends.triton import rules
from memformer_kernels.backends.triton.coefficients import FULL, Coefficient
from memformer_kernels.backends.triton.launch import (
    architecture,
    in_slots,
    launch,
    scratch_of,
    strides_of,
    triton_type,
)
from memformer_kernels.backends.triton.layers import (
    INITIAL,
    MIXED,
    Constants,
    Memory,
    Tensors,
    own_tasks,
    put_context_gram,
    row_tile,
    run_layers,
    shape_of,
    slots_of,
)
from memformer_kernels.backends.triton.tiles import inner, product, put, wide

QUERIES_AT_ONCE = 8


@triton.jit
def put_first_state(t, strides, memory, own, n, C: tl.constexpr):
    """Stores X_0, and in Gram space G_0 from the tokens or as given."""
    z_task, z_row, z_column = strides
    i_task = own.i_task
    i_column = tl.arange(0, C.BLOCK)[None, None, :]
    if C.SPACE == "gram":
        i = tl.arange(0, C.BLOCK)[None, :, None]
        m_square = own.m_task & (i < n.width) & (i_column < n.width)
        if t.matrix is None:
            put_context_gram(INITIAL, t.z + i_task * z_task, z_row, z_column, memory, own, n, C)
        else:
            p_entry = t.matrix + i_task * n.width * n.width + i * n.width + i_column
            put(memory.squares + i * n.width + i_column, tl.load(p_entry, mask=m_square, other=0.0), m_square)
        unit = tl.where(i == i_column, 1.0, 0.0).to(C.ACC) + tl.zeros_like(i_task).to(C.ACC)
        put(memory.states + i * n.width + i_column, unit, m_square)
    else:
        for first in range(0, n.rows, C.ROWS):
            tile = row_tile(first, own.m_task, n, C)
            m_kept = tile.m_entry & ((tile.i_row < own.count) | (tile.i_row >= n.valid_from))
            p_token = t.z + i_task * z_task + tile.i_row * z_row + i_column * z_column
            put(memory.states + tile.o_entry, tl.load(p_token, mask=m_kept, other=0.0).to(C.ACC), tile.m_entry)


@triton.jit
def read_queries(t, state, i_query, strides, own, n, C: tl.constexpr):
    """Minus the responses (TASKS, QUERIES) of the query tokens i_query (QUERIES,) at a state."""
    z_task, z_row, z_column = strides
    j = tl.arange(0, C.BLOCK)[None, None, :]
    i_row = n.tokens - n.queries + i_query[None, :, None]
    m_query = own.m_task & (i_query < n.queries)[None, :, None]
    if C.SPACE == "gram":
        p_query = t.z + own.i_task * z_task + i_row * z_row + j * z_column
        query = tl.load(p_query, mask=m_query & (j < n.width), other=0.0).to(C.ACC)
        last = tl.load(state + j * n.width + n.width - 1, mask=own.m_task & (j < n.width), other=0.0)
        responses = inner(query, last, 2)
    else:
        responses = tl.sum(tl.load(state + i_row * n.width + n.width - 1, mask=m_query, other=0.0), 2)
    return -responses


@triton.jit
def store_tokens(t, out, register_out, strides, memory, own, n, C: tl.constexpr):
    """Z_L (B, N, D), and the last layer's register where it is asked for."""
    z_task, z_row, z_column = strides
    i_task = own.i_task
    i_column = tl.arange(0, C.BLOCK)[None, None, :]
    for first in range(0, n.tokens, C.ROWS):
        i_row = first + tl.arange(0, C.ROWS)[None, :, None]
        m_token = own.m_task & (i_row < n.tokens) & (i_column < n.width)
        if C.SPACE == "gram":
            moved = product(
                (t.z + i_task * z_task + first * z_row, z_row, z_column),
                (memory.states, n.width, 1),
                (own.m_task, n.tokens - first, n.width, n.width, n.width),
                C.ROWS,
                C.BLOCK,
                C,
            )
        else:
            moved = tl.load(memory.states + i_row * n.width + i_column, mask=m_token, other=0.0)
        tl.store(out + (i_task * n.tokens + i_row) * n.width + i_column, moved, mask=m_token)
        if register_out is not None:
            for register in range(n.kept):
                p_register = memory.registers + register * memory.slot + i_row * n.width + i_column
                value = tl.load(p_register, mask=m_token, other=0.0)
                o_register = ((i_task * n.kept + register) * n.tokens + i_row) * n.width + i_column
                tl.store(register_out + o_register, value, mask=m_token)


# One layer, one head and one register are compiled for themselves: their loops, and what these keep in registers, go.
@triton.jit(do_not_specialize=["batch", "tokens", "context", "depth", "queries", "outputs"])
def network_kernel(
    t,
    out,
    register_out,
    scratch,
    strides,
    batch,
    tokens,
    context,
    width,
    layers,
    heads,
    kept,
    depth,
    queries,
    outputs,
    scratch_size,
    C: tl.constexpr,
):
    """Z_L (B, N, D), with the last layer's register where it is asked for, or predictions (outputs, B, queries).

    Scratch: states (L + 1 with KEEP, else one, which each layer moves on), registers (L, R) where later layers read
    them, else (R), D-by-D slots.
    """
    z_strides = wide(strides)
    n = shape_of(batch, tokens, context, width, layers, heads, kept, depth, queries, outputs, C)
    lane = tl.arange(0, C.TASKS)[:, None, None]
    slot = tl.cast(C.TASKS * n.rows * width, tl.int64)
    square = tl.cast(C.TASKS * width * width, tl.int64)
    program = scratch + tl.cast(tl.program_id(0), tl.int64) * scratch_size
    states = program + lane * n.rows * width
    slots = slots_of(n.layers + 1 if C.KEEP else 1, 0, n.layers * n.kept if C.RULE == 2 else n.kept)
    registers = states + slots.registers * slot
    squares = program + slots.end * slot + lane * width * width
    state_slot = slot if C.KEEP else slot * 0
    register_slot = n.kept * slot if C.RULE == 2 else slot * 0
    memory = Memory(states, None, registers, squares, slot, square, state_slot, register_slot)
    for block in range(tl.program_id(0), tl.cdiv(n.batch, C.TASKS), tl.num_programs(0)):
        i_task = tl.cast(block, tl.int64) * C.TASKS + lane
        own = own_tasks(t, i_task, n)
        put_first_state(t, z_strides, memory, own, n, C)
        run_layers(t, memory, own, n, C)
        if C.STACK:
            store_tokens(t, out, register_out, z_strides, memory, own, n, C)
        else:
            for output in range(n.outputs):
                state = states + (n.layers - n.outputs + output + 1) * state_slot
                for first in range(0, n.queries, C.QUERIES):
                    i_query = first + tl.arange(0, C.QUERIES)
                    values = read_queries(t, state, i_query, z_strides, own, n, C)
                    o_out = (tl.cast(output, tl.int64) * n.batch + i_task) * n.queries + i_query[None, None, :]
                    m_query = own.m_task & (i_query < n.queries)[None, None, :]
                    tl.store(out + o_out, values[:, None, :], mask=m_query)
        tl.debug_barrier()


class Recurrence(NamedTuple):
    """z (B, N, D) with its contexts; dense q, p (L, H, D, D) and coefficients in full, in the working dtype.

    kept: R. past: registers (B, R, N, D) from before the first layer, each contiguous. p_grad: p is an argument.
    matrix: mean context Gram matrices (B, D, D) for Gram space, contiguous, which are not computed from z then.
    """

    z: Tensor
    lengths: Tensor | None
    context: int
    space: str
    q: Tensor
    p: Tensor
    p_grad: bool
    rule: int
    gamma: Coefficient
    beta: Coefficient
    kept: int
    past: tuple[Tensor, ...] = ()
    matrix: Tensor | None = None

    @property
    def rows(self) -> int:
        """Of a state."""
        return self.z.shape[2] if self.space == "gram" else self.z.shape[1]

    @property
    def config(self) -> rules.Config:
        dtype = self.q.dtype
        return rules.config(self.z.shape[2], self.rows, dtype, architecture(self.q.device), matrices=True)

    def scratch_size(self, states: int, grads: int, registers: int) -> int:
        """Numbers of a program's scratch with so many states, gradients of states that lie apart, and registers."""
        end, width = slots_of.fn(states, grads, registers).end, self.z.shape[2]
        squares = MIXED.value + self.kept
        return self.config.tasks * int(end * self.rows * width + squares * width * width)

    def arguments(self, queries: int, outputs: int, stack: bool) -> dict[str, Any]:
        """What both kernels are told."""
        z, past, config = self.z, in_slots(self.past), self.config
        batch, tokens, width = z.shape
        layers, heads = self.q.shape[:2]
        gamma, beta = self.gamma.values, self.beta.values
        return {
            "t": Tensors(z, self.matrix, self.lengths, past or None, self.q, self.p, gamma, beta),
            "strides": strides_of(z),
            "batch": batch,
            "tokens": tokens,
            "context": self.context,
            "width": width,
            "layers": layers,
            "heads": heads,
            "kept": self.kept,
            "depth": len(self.past),
            "queries": queries,
            "outputs": outputs,
            "C": Constants(
                SPACE=self.space,
                STACK=stack,
                RULE=self.rule,
                GAMMA_TOKENS=self.gamma.has_tokens,
                BETA_TOKENS=self.beta.has_tokens,
                PAST=len(past),
                TASKS=config.tasks,
                BLOCK=config.block,
                ROWS=config.rows,
                QUERIES=QUERIES_AT_ONCE,
                CHUNK=config.chunk,
                ACC=triton_type(self.q.dtype),
                PRECISION=rules.precision(self.q.dtype),
            ),
            **config.options,
        }


def tokens(recurrence: Recurrence, register: bool) -> tuple[Tensor, Tensor | None]:
    """Z_L (B, N, D) in z's dtype, and with `register` the register (B, R, N, D) of a single layer."""
    z = recurrence.z
    out = torch.empty_like(z, memory_format=torch.contiguous_format)
    register_out = z.new_empty((z.shape[0], recurrence.kept, *z.shape[1:])) if register else None
    _forward(recurrence, 0, 1, out, register_out, stack=True)
    return out, register_out


def predictions(recurrence: Recurrence, queries: int, outputs: int) -> Tensor:
    """Predictions (outputs, B, queries), after every layer where `outputs` is L."""
    out = recurrence.q.new_empty((outputs, recurrence.z.shape[0], queries))
    _forward(recurrence, queries, outputs, out, None, stack=False)
    return out


def _forward(
    recurrence: Recurrence, queries: int, outputs: int, out: Tensor, register_out: Tensor | None, stack: bool
) -> None:
    q, keep = recurrence.q, outputs > 1
    layers = q.shape[0]
    registers = recurrence.kept * (layers if recurrence.rule == FULL else 1)
    size = recurrence.scratch_size(layers + 1 if keep else 1, 0, registers)
    config = recurrence.config
    programs, scratch = scratch_of(q, triton.cdiv(recurrence.z.shape[0], config.tasks), size, config.warps)
    arguments = recurrence.arguments(queries, outputs, stack)
    arguments["C"] = arguments["C"]._replace(KEEP=keep)
    if out.numel():
        launch(
            network_kernel,
            programs,
            out=out,
            register_out=register_out,
            scratch=scratch,
            scratch_size=size,
            **arguments,
        )

"""Networks of any structure: tokens or predictions after the layers of `layers`, in one launch."""

import triton
import triton.language as tl

from memformer_kernels.backends.triton.layers import put_context_gram, run_layers
from memformer_kernels.backends.triton.tiles import inner, load_counts, product, put, wide


@triton.jit
def put_first_state(
    z,
    matrix,
    states,
    squares,
    task,
    strides,
    sizes,
    count,
    valid_from,
    live,
    SPACE: tl.constexpr,
    TASKS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Stores X_0, and in Gram space G_0 from the tokens or as given."""
    z_task, z_row, z_column = strides
    rows, width, _, _, _, _, context = sizes
    column = tl.arange(0, BLOCK)[None, None, :]
    if SPACE == "gram":
        i = tl.arange(0, BLOCK)[None, :, None]
        mask = live & (i < width) & (column < width)
        if matrix is None:
            put_context_gram(
                squares,
                z + task * z_task,
                z_row,
                z_column,
                count,
                context,
                live,
                width,
                TASKS,
                BLOCK,
                CHUNK,
                ACC,
                PRECISION,
            )
        else:
            given = tl.load(matrix + task * width * width + i * width + column, mask=mask, other=0.0)
            put(squares + i * width + column, given, mask)
        put(states + i * width + column, tl.where(i == column, 1.0, 0.0).to(ACC) + tl.zeros_like(task).to(ACC), mask)
    else:
        for first in range(0, rows, ROWS):
            row = first + tl.arange(0, ROWS)[None, :, None]
            mask = live & (row < rows) & (column < width)
            kept = mask & ((row < count) | (row >= valid_from))
            at = z + task * z_task + row * z_row + column * z_column
            put(states + row * width + column, tl.load(at, mask=kept, other=0.0).to(ACC), mask)


@triton.jit
def read_queries(
    z,
    state,
    task,
    q,
    strides,
    tokens,
    queries,
    width,
    live,
    SPACE: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """Minus the responses (TASKS, QUERIES) of the query tokens q (QUERIES,) at a state."""
    z_task, z_row, z_column = strides
    j = tl.arange(0, BLOCK)[None, None, :]
    row = tokens - queries + q[None, :, None]
    asked = live & (q < queries)[None, :, None]
    if SPACE == "gram":
        at = z + task * z_task + row * z_row + j * z_column
        query = tl.load(at, mask=asked & (j < width), other=0.0).to(ACC)
        last = tl.load(state + j * width + width - 1, mask=live & (j < width), other=0.0)
        responses = inner(query, last, 2)
    else:
        responses = tl.sum(tl.load(state + row * width + width - 1, mask=asked, other=0.0), 2)
    return -responses


# One layer, one head and one register are compiled for themselves: their loops, and what these keep in registers, go.
@triton.jit(do_not_specialize=["batch", "tokens", "context", "rows", "depth", "queries", "outputs", "valid_from"])
def network_kernel(
    z,
    matrix,
    lengths,
    past,
    q,
    p,
    gamma,
    beta,
    out,
    register_out,
    scratch,
    z_task,
    z_row,
    z_column,
    past_slot,
    batch,
    tokens,
    context,
    rows,
    width,
    layers,
    heads,
    kept,
    depth,
    queries,
    outputs,
    valid_from,
    scratch_size,
    SPACE: tl.constexpr,
    STACK: tl.constexpr,
    KEEP: tl.constexpr,
    RULE: tl.constexpr,
    GAMMA_TOKENS: tl.constexpr,
    BETA_TOKENS: tl.constexpr,
    PAST: tl.constexpr,
    TASKS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    QUERIES: tl.constexpr,
    CHUNK: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Z_L (B, N, D), with the last layer's register where it is asked for, or predictions (outputs, B, queries).

    Scratch: states (L + 1 slots with KEEP, else one, which each layer moves on), registers (L, R), D-by-D slots.
    """
    strides = wide((z_task, z_row, z_column))
    sizes = (rows, width, layers, heads, kept, depth, context)
    lane = tl.arange(0, TASKS)[:, None, None]
    column = tl.arange(0, BLOCK)[None, None, :]
    tall = tl.cast(TASKS * rows * width, tl.int64)
    memory = scratch + tl.cast(tl.program_id(0), tl.int64) * scratch_size
    states = memory + lane * rows * width
    state_slot = tall if KEEP else tall * 0
    kept_states = layers + 1 if KEEP else 1
    registers = states + kept_states * tall
    squares = memory + (layers * kept + kept_states) * tall + lane * width * width
    shared = tl.zeros((TASKS, 1, 1), tl.int32)
    for block in range(tl.program_id(0), tl.cdiv(batch, TASKS), tl.num_programs(0)):
        task = tl.cast(block, tl.int64) * TASKS + lane
        live = task < batch
        count = load_counts(lengths, task, context, live)
        put_first_state(
            z,
            matrix,
            states,
            squares,
            task,
            strides,
            sizes,
            count,
            valid_from,
            live,
            SPACE,
            TASKS,
            BLOCK,
            ROWS,
            CHUNK,
            ACC,
            PRECISION,
        )
        own_past = past + task * kept * rows * width
        run_layers(
            states,
            state_slot,
            registers,
            squares,
            (own_past, tl.cast(past_slot, tl.int64)),
            (q + shared, p + shared, gamma, beta),
            sizes,
            count,
            valid_from,
            live,
            SPACE,
            RULE,
            GAMMA_TOKENS,
            beta is not None,
            BETA_TOKENS,
            PAST,
            TASKS,
            BLOCK,
            ROWS,
            CHUNK,
            ACC,
            PRECISION,
        )
        if STACK:
            for first in range(0, tokens, ROWS):
                row = first + tl.arange(0, ROWS)[None, :, None]
                mask = live & (row < tokens) & (column < width)
                if SPACE == "gram":
                    moved = product(
                        (z + task * strides[0] + first * strides[1], strides[1], strides[2]),
                        (states, width, 1),
                        (live, tokens - first, width, width, width),
                        TASKS,
                        ROWS,
                        BLOCK,
                        CHUNK,
                        ACC,
                        PRECISION,
                    )
                else:
                    moved = tl.load(states + row * width + column, mask=mask, other=0.0)
                tl.store(out + (task * tokens + row) * width + column, moved, mask=mask)
                if register_out is not None:
                    for register in range(kept):
                        made = tl.load(registers + register * tall + row * width + column, mask=mask, other=0.0)
                        at = ((task * kept + register) * tokens + row) * width + column
                        tl.store(register_out + at, made, mask=mask)
        else:
            for output in range(outputs):
                state = states + (layers - outputs + output + 1) * state_slot
                for first in range(0, queries, QUERIES):
                    asked = first + tl.arange(0, QUERIES)
                    values = read_queries(
                        z, state, task, asked, strides, tokens, queries, width, live, SPACE, BLOCK, ACC
                    )
                    at = (tl.cast(output, tl.int64) * batch + task) * queries + asked[None, None, :]
                    mask = live & (asked < queries)[None, None, :]
                    tl.store(out + at, values[:, None, :], mask=mask)
        tl.debug_barrier()

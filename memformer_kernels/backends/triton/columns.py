"""Response-only networks on tokens, for tiny tasks: features X stay in registers, only the response column s moves.

    g_l = X^T s_l / n over the context;   r_{l,h} = X A_{l,h} g_l + beta * r_{l-1,h};   s_{l+1} = s_l + sum gamma * r_j
    backward, with u_l the gradient of s_{l+1}:   r'_l = sum_{l'>=l} gamma_{l',l} * u_{l'} + beta_{l+1} * r'_{l+1}
    v' = X^T r'_l;   A' = v' g^T;   g' = A^T v';   u_{l-1} = u_l + X g' / n;   X' = s g'^T / n + r' (A g)^T

A program owns TASKS tasks at a time for all layers: it reads their tokens once, N D numbers each, and makes 2 L N D
multiply-adds forward and twice as many backward. Columns and vectors of a layer go to its scratch, which the caches
hold. Backward it owns LANES consecutive tasks and adds up parameter gradients in its own partial sum.
"""

import triton
import triton.language as tl

from memformer_kernels.backends.triton.tiles import add_to, inner, load_counts, wide


@triton.jit
def load_tokens(z, task, strides, sizes, count, live, ROWS: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """Features (TASKS, ROWS, BLOCK) and responses (TASKS, ROWS); padding is zero by selection."""
    z_task, z_row, z_column = strides
    tokens, features, _, _, valid_from = sizes
    row = tl.arange(0, ROWS)[None, :]
    column = tl.arange(0, BLOCK)[None, None, :]
    read = live & (row < tokens) & ((row < count) | (row >= valid_from))
    at = z + task * z_task + row * z_row
    x = tl.load(at[:, :, None] + column * z_column, mask=read[:, :, None] & (column < features), other=0.0).to(ACC)
    return x, tl.load(at + features * z_column, mask=read, other=0.0).to(ACC)


@triton.jit
def weigh(coefficient, index, row, tokens, TOKENS: tl.constexpr):
    """One entry of a coefficient's response column, (1, ROWS) or a scalar."""
    if TOKENS:
        values = tl.load(coefficient + tl.cast(index, tl.int64) * tokens + row, mask=row < tokens, other=0.0)
    else:
        values = tl.load(coefficient + index)
    return values


@triton.jit
def shared_matrix(a, index, features, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)[None, :, None]
    j = tl.arange(0, BLOCK)[None, None, :]
    at = a + tl.cast(index, tl.int64) * features * features + i * features + j
    return tl.load(at, mask=(i < features) & (j < features), other=0.0)


@triton.jit
def run_layers(
    x,
    s,
    inside,
    count,
    parameters,
    columns,
    vectors,
    sizes,
    live,
    RULE: tl.constexpr,
    GAMMA_TOKENS: tl.constexpr,
    BETA: tl.constexpr,
    BETA_TOKENS: tl.constexpr,
    TASKS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """All layers. columns: slots (TASKS, tokens) of s_0, ..., s_L, then registers (L, R); vectors: g_l (TASKS, d)."""
    a, gamma, beta = parameters
    tokens, features, layers, kept, _ = sizes
    row = tl.arange(0, ROWS)[None, :]
    i = tl.arange(0, BLOCK)[None, :]
    mask = live & (row < tokens)
    slot = tl.cast(TASKS * tokens, tl.int64)
    vector = tl.cast(TASKS * features, tl.int64)
    registers = columns + (layers + 1) * slot
    tl.store(columns, s, mask=mask)
    for layer in range(layers):
        g = inner(x, tl.where(inside, s, 0.0)[:, :, None], 1) / count.to(ACC)
        tl.store(vectors + layer * vector, g, mask=live & (i < features))
        for head in range(kept):
            index = layer * kept + head
            v = inner(shared_matrix(a, index, features, BLOCK), g[:, None, :], 2)
            register = inner(x, v[:, None, :], 2)
            if BETA:
                before = tl.load(registers + (index - kept) * slot, mask=mask & (layer > 0), other=0.0)
                register += weigh(beta, index, row, tokens, BETA_TOKENS) * before
            tl.store(registers + index * slot, register, mask=mask)
            if RULE == 0:
                s += register
            else:
                at = index if RULE == 1 else (layer * layers + layer) * kept + head
                s += weigh(gamma, at, row, tokens, GAMMA_TOKENS) * register
            if RULE == 2:
                for past in range(layer):
                    at = (layer * layers + past) * kept + head
                    earlier = tl.load(registers + (past * kept + head) * slot, mask=mask, other=0.0)
                    s += weigh(gamma, at, row, tokens, GAMMA_TOKENS) * earlier
        tl.store(columns + (layer + 1) * slot, s, mask=mask)
        tl.debug_barrier()
    return s


@triton.jit
def add_weight(into, index, left, right, row, tokens, TOKENS: tl.constexpr):
    """Adds left * right to a coefficient's gradient, summed over tasks and, without a token axis, over tokens."""
    total = inner(left, right, 0, keep_dims=True)
    if TOKENS:
        add_to(into + tl.cast(index, tl.int64) * tokens + row, total, row < tokens)
    else:
        add_to(into + index, tl.sum(tl.sum(total, 1), 0), index >= 0)


@triton.jit(do_not_specialize=["batch", "tokens", "context", "layers", "kept", "queries", "outputs", "valid_from"])
def columns_kernel(
    z,
    lengths,
    a,
    gamma,
    beta,
    out,
    scratch,
    z_task,
    z_row,
    z_column,
    batch,
    tokens,
    context,
    features: tl.constexpr,
    layers,
    kept,
    queries,
    outputs,
    valid_from,
    scratch_size,
    RULE: tl.constexpr,
    GAMMA_TOKENS: tl.constexpr,
    BETA_TOKENS: tl.constexpr,
    TASKS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """Minus the responses (outputs, B, queries) of the last tokens, after every layer where `outputs` is L."""
    sizes = (tokens, features, layers, kept, valid_from)
    strides = wide((z_task, z_row, z_column))
    lane = tl.arange(0, TASKS)[:, None]
    row = tl.arange(0, ROWS)[None, :]
    i = tl.arange(0, BLOCK)[None, :]
    slot = tl.cast(TASKS * tokens, tl.int64)
    memory = scratch + tl.cast(tl.program_id(0), tl.int64) * scratch_size
    columns = memory + lane * tokens + row
    vectors = memory + (layers + 1 + layers * kept) * slot + lane * features + i
    for block in range(tl.program_id(0), tl.cdiv(batch, TASKS), tl.num_programs(0)):
        task = tl.cast(block, tl.int64) * TASKS + lane
        live = task < batch
        count = load_counts(lengths, task, context, live)
        x, s = load_tokens(z, task, strides, sizes, count, live, ROWS, BLOCK, ACC)
        run_layers(
            x,
            s,
            row < count,
            count,
            (a, gamma, beta),
            columns,
            vectors,
            sizes,
            live,
            RULE,
            GAMMA_TOKENS,
            beta is not None,
            BETA_TOKENS,
            TASKS,
            ROWS,
            BLOCK,
            ACC,
        )
        first = tokens - queries
        mask = live & (row >= first) & (row < tokens)
        for output in range(outputs):
            at = columns + (layers - outputs + output + 1) * slot
            values = tl.load(at, mask=mask, other=0.0)
            place = (tl.cast(output, tl.int64) * batch + task) * queries + row - first
            tl.store(out + place, -values, mask=mask)
        tl.debug_barrier()


@triton.jit(
    do_not_specialize=[
        "batch",
        "tokens",
        "context",
        "layers",
        "kept",
        "queries",
        "outputs",
        "valid_from",
        "predicted",
    ]
)
def columns_backward_kernel(
    z,
    lengths,
    a,
    gamma,
    beta,
    error,
    target,
    z_grad,
    partials,
    scratch,
    z_task,
    z_row,
    z_column,
    batch,
    tokens,
    context,
    features: tl.constexpr,
    layers,
    kept,
    queries,
    outputs,
    valid_from,
    scratch_size,
    partial_size,
    predicted,
    LOSS: tl.constexpr,
    RULE: tl.constexpr,
    GAMMA_TOKENS: tl.constexpr,
    BETA_TOKENS: tl.constexpr,
    TASKS: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """Gradients from those of the predictions, `error` (outputs, B, queries), or of the squared errors to `target`.

    A partial sum holds the gradients of a, gamma, beta and, for the loss, the sum of squares; `error` (1, B, queries)
    then receives 2 (prediction - target) / predicted. z_grad (B, N, D) is made where it is given.
    """
    sizes = (tokens, features, layers, kept, valid_from)
    strides = wide((z_task, z_row, z_column))
    BETA: tl.constexpr = beta is not None
    lane = tl.arange(0, TASKS)[:, None]
    row = tl.arange(0, ROWS)[None, :]
    i = tl.arange(0, BLOCK)[None, :]
    entry = tl.arange(0, BLOCK)[None, :, None] * features + tl.arange(0, BLOCK)[None, None, :]
    square = (tl.arange(0, BLOCK)[None, :, None] < features) & (tl.arange(0, BLOCK)[None, None, :] < features)
    slot = tl.cast(TASKS * tokens, tl.int64)
    vector = tl.cast(TASKS * features, tl.int64)
    weights = tl.cast(layers * kept, tl.int64)
    memory = scratch + tl.cast(tl.program_id(0), tl.int64) * scratch_size
    columns = memory + lane * tokens + row
    registers = columns + (layers + 1) * slot
    updates = registers + layers * kept * slot
    register_grads = updates + layers * slot
    vectors = memory + (2 * layers + 1 + layers * kept + kept) * slot + lane * features + i
    gamma_rows = tokens if GAMMA_TOKENS else 1
    first = tokens - queries
    for chunk in range(tl.program_id(0), tl.cdiv(batch, LANES), tl.num_programs(0)):
        partial = partials + tl.cast(chunk, tl.int64) * partial_size
        gammas = partial + weights * features * features
        betas = gammas
        if RULE == 1:
            betas = gammas + weights * gamma_rows
        if RULE == 2:
            betas = gammas + layers * weights * gamma_rows
        first_task = tl.cast(chunk, tl.int64) * LANES
        squares = tl.zeros((TASKS, 1), ACC)
        for step in range(tl.cdiv(tl.minimum(batch - first_task, LANES).to(tl.int32), TASKS)):
            task = first_task + step * TASKS + lane
            live = task < batch
            mask = live & (row < tokens)
            asked = mask & (row >= first)
            count = load_counts(lengths, task, context, live)
            inside = row < count
            x, s = load_tokens(z, task, strides, sizes, count, live, ROWS, BLOCK, ACC)
            s = run_layers(
                x,
                s,
                inside,
                count,
                (a, gamma, beta),
                columns,
                vectors,
                sizes,
                live,
                RULE,
                GAMMA_TOKENS,
                BETA,
                BETA_TOKENS,
                TASKS,
                ROWS,
                BLOCK,
                ACC,
            )
            if LOSS:
                own = task * queries + row - first
                missed = tl.where(asked, -s - tl.load(target + own, mask=asked, other=0.0).to(ACC), 0.0)
                squares += inner(missed, missed, 1, keep_dims=True)
                tl.store(error + own, 2 * missed / tl.cast(predicted, ACC), mask=asked)
                tl.debug_barrier()
            grad = tl.zeros((TASKS, ROWS), ACC)
            if z_grad is not None:
                x_grad = tl.zeros((TASKS, ROWS, BLOCK), ACC)
            for back in range(layers):
                layer = layers - 1 - back
                if back < outputs:
                    place = (tl.cast(outputs - 1 - back, tl.int64) * batch + task) * queries + row - first
                    grad -= tl.load(error + place, mask=asked, other=0.0).to(ACC)
                tl.store(updates + layer * slot, grad, mask=mask)
                g = tl.load(vectors + layer * vector, mask=live & (i < features), other=0.0)
                g_grad = tl.zeros((TASKS, BLOCK), ACC)
                for head in range(kept):
                    index = layer * kept + head
                    made = tl.load(registers + index * slot, mask=mask, other=0.0)
                    if RULE == 0:
                        register_grad = grad
                    else:
                        weight = index if RULE == 1 else (layer * layers + layer) * kept + head
                        register_grad = grad * weigh(gamma, weight, row, tokens, GAMMA_TOKENS)
                        add_weight(gammas, weight, made, grad, row, tokens, GAMMA_TOKENS)
                    if RULE == 2:
                        for later in range(layer + 1, layers):
                            weight = (later * layers + layer) * kept + head
                            update = tl.load(updates + later * slot, mask=mask, other=0.0)
                            register_grad += update * weigh(gamma, weight, row, tokens, GAMMA_TOKENS)
                            add_weight(gammas, weight, made, update, row, tokens, GAMMA_TOKENS)
                    if BETA:
                        if back > 0:
                            carried = tl.load(register_grads + head * slot, mask=mask, other=0.0)
                            register_grad += carried * weigh(beta, index + kept, row, tokens, BETA_TOKENS)
                            add_weight(betas, index + kept, made, carried, row, tokens, BETA_TOKENS)
                        tl.store(register_grads + head * slot, register_grad, mask=mask)
                    a_tile = shared_matrix(a, index, features, BLOCK)
                    v_grad = inner(x, register_grad[:, :, None], 1)
                    outer = inner(v_grad[:, :, None], g[:, None, :], 0, keep_dims=True)
                    add_to(partial + tl.cast(index, tl.int64) * features * features + entry, outer, square)
                    g_grad += inner(a_tile, v_grad[:, :, None], 1)
                    if z_grad is not None:
                        v = inner(a_tile, g[:, None, :], 2)
                        x_grad += register_grad[:, :, None] * v[:, None, :]
                g_grad = g_grad / count.to(ACC)
                if z_grad is not None:
                    before = tl.load(columns + layer * slot, mask=mask & inside, other=0.0)
                    x_grad += before[:, :, None] * g_grad[:, None, :]
                grad += tl.where(inside, inner(x, g_grad[:, None, :], 2), 0.0)
                tl.debug_barrier()
            if z_grad is not None:
                read = inside | (row >= valid_from)
                to = z_grad + (task * tokens + row) * (features + 1)
                column = tl.arange(0, BLOCK)[None, None, :]
                kept_grad = tl.where(read[:, :, None], x_grad, 0.0)
                tl.store(to[:, :, None] + column, kept_grad, mask=mask[:, :, None] & (column < features))
                tl.store(to + features, tl.where(read, grad, 0.0), mask=mask)
            tl.debug_barrier()
        if LOSS:
            tl.store(partial + partial_size - 1, tl.sum(tl.sum(squares, 1), 0))

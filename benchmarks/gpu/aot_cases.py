"""The calls whose launches `aot` compiles: every kernel, in every configuration that a rule can choose."""

import math
from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from torch import Tensor

from memformer_kernels.backends.triton import attention, gram, networks, register_update, rules
from memformer_kernels.backends.triton.spread import SpreadCalls
from memformer_kernels.backends.triton.wide import WideBackend
from memformer_kernels.calls.arguments import Attention, Layer, Network, Quadratics, form_named
from memformer_kernels.calls.limits import WIDEST_MATRICES
from memformer_kernels.calls.problem import check_network

SINGLE, HALF, DOUBLE = torch.float32, torch.bfloat16, torch.float64

NAMES = {SINGLE: "fp32", HALF: "bf16", DOUBLE: "fp64"}

Case = Callable[[], Callable[[], object]]
"""Makes a call's arguments; what it returns makes the call."""


def _draw(*shape: int, dtype: torch.dtype = SINGLE, aligned: bool = True) -> Tensor:
    """Zeros; not aligned: they begin one number behind what every allocation is a multiple of."""
    if aligned:
        return torch.zeros(shape, dtype=dtype, device="cpu")
    return torch.zeros(math.prod(shape) + 1, dtype=dtype, device="cpu")[1:].view(shape)


def _network(
    width: int,
    tokens: int,
    structure: str,
    space: str,
    dtype: torch.dtype,
    rule: str = "lfom",
    tasks: int = 2048,
    heads: int = 1,
    ragged: bool = False,
    aligned: bool = True,
) -> Network:
    """rule: "lfom", "full" for LFOM with a token axis, or "recursive". ragged: every task has a context of its own."""
    side = width if structure == "dense" else width - 1
    draw = partial(_draw, dtype=DOUBLE if dtype == DOUBLE else SINGLE, aligned=aligned)
    q = draw(4, heads, side, side)
    p = None if structure == "response-only" else q
    if rule == "recursive":
        gamma, beta = draw(4, heads, 1, 1), draw(4, heads, 1, width)
    else:
        gamma, beta = draw(4, 4, heads, tokens if rule == "full" else 1, width), None
    z = _draw(tasks, tokens, width, dtype=dtype, aligned=aligned)
    lengths = torch.ones(tasks, dtype=torch.int64, device="cpu") if ragged else None
    context = tokens - 1 if lengths is None else lengths
    form = form_named(check_network(z, q, p, gamma, beta, None, context).form(space))
    return Network(z, q, p, gamma, beta, lengths, tokens - 1 if lengths is None else tokens, form)


Calls = networks.ResponseCalls | networks.ColumnCalls | networks.NetworkCalls | SpreadCalls


def _calls(network: Network, need_z: bool = False) -> Calls:
    if network.p is not None:
        return networks.NetworkCalls(network)
    if network.form.space == "gram" and need_z and rules.gram_apart(network.z.shape[2]):
        return SpreadCalls(network, response_only=True)
    if network.form.space == "gram":
        return networks.ResponseCalls(network)
    return networks.ColumnCalls(network)


def _loss(
    width: int,
    tokens: int,
    structure: str,
    space: str,
    dtype: torch.dtype = SINGLE,
    rule: str = "lfom",
    heads: int = 1,
    ragged: bool = False,
    aligned: bool = True,
) -> Callable[[], object]:
    network = _network(width, tokens, structure, space, dtype, rule, heads=heads, ragged=ragged, aligned=aligned)
    target = _draw(network.z.shape[0], 1)
    return lambda: _calls(network).loss(target, 1, need_z=False)


def _results(width: int, structure: str, space: str) -> Callable[[], object]:
    """Predictions after every layer, tokens, and the gradient of z."""
    network = _network(width, 40, structure, space, SINGLE)

    def call() -> None:
        calls = _calls(network, need_z=True)
        calls.predict(1, layers=True)
        calls.stack()
        calls.stack_backward(network.z, need_z=True)

    return call


def _layer(width: int, tokens: int, backward: bool, dtype: torch.dtype = SINGLE) -> Callable[[], object]:
    z, q = _draw(512, tokens, width, dtype=dtype), _draw(1, width, width)
    past = _draw(512, 1, tokens, width, dtype=dtype)
    form = form_named("token, dense, full")
    call = Layer(z, q, q, [past], _draw(2, 1, 1, width), None, None, tokens - 1, form)
    calls = networks.NetworkCalls.of_layer(call)
    if backward:
        return lambda: calls.layer_backward(z, past, need_z=True, need_past=True)
    return calls.layer


def _quadratics(width: int) -> Callable[[], object]:
    h, b, a = _draw(512, width, width), _draw(512, width), _draw(4, width, width)
    calls = networks.QuadraticCalls(Quadratics(h, b, a, None, None, None))
    return lambda: (calls.solve(layers=False), calls.backward(b[None], [True, True, True, False, False, False]))


def _gram(width: int, dtype: torch.dtype) -> Callable[[], object]:
    z = _draw(512, 100, width, dtype=dtype)
    return lambda: gram.gram_backward(gram.gram(z, None, 99), z, None, 99)


def _few_tasks(width: int, structure: str) -> Callable[[], object]:
    network = _network(width, 5000, structure, "gram", SINGLE, tasks=2)
    error = _draw(1, 2, 1)

    def call() -> None:
        calls = SpreadCalls(network, structure == "response-only")
        calls.predict(1, layers=True)
        calls.predict_backward(error, need_z=True)
        calls.stack()
        calls.stack_backward(network.z, need_z=True)

    return call


def _large(width: int, rule: str, space: str) -> Callable[[], object]:
    network = _network(width, 40, "block", space, SINGLE, rule, tasks=2)
    return lambda: WideBackend().loss(network, _draw(2, 1), 1, [False, False, True, True, True, True, False])


HOT: dict[str, Case] = {
    "loss, W": partial(_loss, 6, 21, "response-only", "gram"),
    "loss, W_full": partial(_loss, 6, 21, "response-only", "token", SINGLE, "full"),
    "loss, tile D=64": partial(_loss, 64, 512, "response-only", "gram"),
    "loss, tile D=128": partial(_loss, 128, 2048, "response-only", "gram"),
    "layer, D=64": partial(_layer, 64, 512, backward=False),
}
"""The configurations of the headline workloads."""

WIDTHS = (3, 6, 9, 16, 32, 64, 128)


def cases() -> dict[str, Case]:
    """All block sizes, both spaces, the dtypes at a packed and a tile size, and the calls for few and large tasks.

    What takes longest to compile, the backward of networks that move features, comes last.
    """
    made = dict(HOT)
    for features, tokens in ((64, 512), (128, 2048)):
        made[f"loss, tile d={features}"] = partial(_loss, features + 1, tokens + 1, "response-only", "gram")
    for width in WIDTHS:
        for dtype in _dtypes(width):
            kind = f"D={width} {NAMES[dtype]}"
            made[f"response-only, {kind}"] = partial(_loss, width, 40, "response-only", "gram", dtype)
            made[f"Gram matrix, {kind}"] = partial(_gram, width, dtype)
        made[f"response-only, results, D={width}"] = partial(_results, width, "response-only", "gram")
        made[f"quadratics, d={width}"] = partial(_quadratics, width)
    for width in (3, 9, 16, 32, 64):
        made[f"response-only, tokens, D={width}"] = partial(_loss, width, 100, "response-only", "token", SINGLE, "full")
    for width, dtype in product((6, 64), (SINGLE, HALF, DOUBLE)):
        name = f"response-only, long on tokens, D={width} {NAMES[dtype]}"
        made[name] = partial(_loss, width, 1000, "response-only", "token", dtype, "full")
    made["response-only, results, tokens, D=6"] = partial(_results, 6, "response-only", "token")
    for width in (6, 64):
        made[f"response-only, recursive, D={width}"] = partial(
            _loss, width, 40, "response-only", "gram", SINGLE, "recursive"
        )
        made[f"few tasks, response-only, D={width}"] = partial(_few_tasks, width, "response-only")
    for rule, space in (("lfom", "gram"), ("recursive", "gram"), ("full", "token")):
        made[f"large tasks, {rule}, D=256"] = partial(_large, 256, rule, space)
    return made | _blocks() | _other_calls() | _moving_features()


def _blocks() -> dict[str, Case]:
    """Attention with factored heads and the register update, which serve models of any width."""
    made: dict[str, Case] = {}
    for width in (16, 64, 128, 256):
        for dtype in tuple(NAMES) if width == 64 else (SINGLE, HALF):
            for form in ("full", "causal", "anticausal"):
                name = f"attention, {form}, E={width} {NAMES[dtype]}"
                made[name] = partial(_attention, width, form, dtype, weighted=form == "anticausal")
    for form in ("full", "causal"):
        made[f"attention, {form}, packed"] = partial(_attention, 64, form, SINGLE, weighted=True, packed=True)
    made["register update, per feature"] = partial(_update, 4, (4096, 512, 1), SINGLE)
    made["register update, per token"] = partial(_update, 4, (2, 512, 512), HALF)
    return made


def _attention(
    width: int, form: str, dtype: torch.dtype, weighted: bool, packed: bool = False, aligned: bool = True
) -> Callable[[], object]:
    tokens = _draw(2, 4096, 4, width, dtype=dtype, aligned=aligned)
    weights = _draw(2, 4096, dtype=DOUBLE if dtype == DOUBLE else SINGLE)
    bounds = torch.tensor([0, 1000, 4096], device="cpu", dtype=torch.int64) if packed else None
    keys = weights if weighted else None
    return lambda: attention.attend(Attention(tokens, tokens, tokens, weights, keys, bounds, form))


def _update(registers: int, shape: tuple[int, int, int], dtype: torch.dtype) -> Callable[[], object]:
    z, gamma = _draw(*shape, dtype=dtype), _draw(registers, shape[1])
    past = [z] * registers
    return lambda: (register_update.update(z, past, gamma), register_update.update_backward(z, past, gamma))


def _other_calls() -> dict[str, Case]:
    """What compiles other code of the same kernels: contexts of several lengths, heads, tasks of one or two numbers a
    token, half precision with memory, and memory that does not begin at a multiple of 16 bytes.
    """
    made: dict[str, Case] = {}
    for structure, space in (
        ("response-only", "gram"),
        ("response-only", "token"),
        ("block", "gram"),
        ("block", "token"),
    ):
        rule = "full" if space == "token" else "lfom"
        kind = f"{structure}, {space}"
        made[f"ragged, {kind}, D=6"] = partial(_loss, 6, 21, structure, space, SINGLE, rule, ragged=True)
        made[f"heads, {kind}, D=6"] = partial(_loss, 6, 21, structure, space, SINGLE, rule, heads=2)
        made[f"two numbers a token, {kind}"] = partial(_loss, 2, 21, structure, space, SINGLE, rule)
        made[f"half with memory, {kind}, D=6"] = partial(_loss, 6, 21, structure, space, HALF, "recursive")
        made[f"unaligned, {kind}, D=6"] = partial(_loss, 6, 21, structure, space, SINGLE, rule, aligned=False)
    for width in (33, 64):
        made[f"ragged, response-only, D={width}"] = partial(_loss, width, 40, "response-only", "gram", ragged=True)
        made[f"heads, response-only, D={width}"] = partial(_loss, width, 40, "response-only", "gram", heads=2)
        made[f"unaligned, response-only, D={width}"] = partial(_loss, width, 40, "response-only", "gram", aligned=False)
    made["one number a token"] = partial(_loss, 1, 21, "dense", "token")
    made["Gram matrix, D=1"] = partial(_gram, 1, SINGLE)
    made["layer backward, D=6 bf16"] = partial(_layer, 6, 100, backward=True, dtype=HALF)
    made["attention, causal, E=256 fp64"] = partial(_attention, 256, "causal", DOUBLE, weighted=False)
    made["attention, unaligned, E=64 fp32"] = partial(_attention, 64, "causal", SINGLE, weighted=True, aligned=False)
    return made


def _moving_features() -> dict[str, Case]:
    made: dict[str, Case] = {}
    widths = [width for width in WIDTHS if width <= WIDEST_MATRICES]
    for width in widths:
        made[f"layer, D={width} bf16"] = partial(_layer, width, 100, backward=False, dtype=HALF)
        made[f"layer backward, D={width}"] = partial(_layer, width, 100, backward=True)
        for dtype in _dtypes(width):
            kind = f"D={width} {NAMES[dtype]}"
            made[f"block, Gram space, {kind}"] = partial(_loss, width, 40, "block", "gram", dtype)
            made[f"block, tokens, {kind}"] = partial(_loss, width, 40, "block", "token", dtype, "full")
    for width in (6, 64):
        made[f"few tasks, block, D={width}"] = partial(_few_tasks, width, "block")
    for space in ("gram", "token"):
        made[f"block, results, {space}, D=6"] = partial(_results, 6, "block", space)
    return made


def _dtypes(width: int) -> tuple[torch.dtype, ...]:
    return tuple(NAMES) if width in (6, 64) else (SINGLE,)

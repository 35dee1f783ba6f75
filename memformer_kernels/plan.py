"""From a problem to a backend, an algorithm and a regime: every dispatch rule of the package, in one place.

Rules look at shapes, structure and device, never at values or at timings, so that the same call always takes the same
path. None depends on the number of tasks, so that a compiled graph serves every batch size.
"""

from typing import NamedTuple

import torch

from memformer_kernels import build
from memformer_kernels.problem import ALGORITHMS, BACKENDS, Problem, QuadraticProblem, check_choice


class Plan(NamedTuple):
    """What will run: `reason` says which rule chose it."""

    backend: str
    algorithm: str
    regime: str
    reason: str


TINY_WIDTH = 16
"""Largest D of the tiny regimes, where a task's matrices fit in registers and cache; largest d where features stay."""

TINY_TOKENS = 128
"""Largest N of the tiny token regime: a task's tokens stay on chip for all layers."""

TILE_WIDTH = 128
"""Largest D of the tile regime: a D-by-D tile fits in shared memory."""

FUSED_WIDTH = 64
"""Largest D for which the Triton kernels are chosen where features move: above it a layer's D-by-D matrices outgrow the
chip, and batched products through torch keep a GPU busier."""

HEAD_WIDTH = 256
"""Widest head of the Triton attention kernels: a chunk's rows of it fit in shared memory."""

FUSED_TOKENS = 4096
"""Largest N for which the Triton kernels are chosen on tokens: there a program owns a whole task."""


def plan_network(problem: Problem, backend: str, algorithm: str) -> Plan:
    """The plan of a stack, a prediction or a loss."""
    check_choice("algorithm", algorithm, ALGORITHMS)
    algorithm, why = _algorithm(problem, algorithm)
    regime = _regime(problem, algorithm)
    backend, where = _backend(backend, problem.device, regime, _fuses(problem, algorithm))
    return Plan(backend, algorithm, regime, f"{why}; {where}")


def plan_layer(problem: Problem, backend: str) -> Plan:
    """The plan of one layer, which always works on tokens: its output is tokens."""
    regime = _regime(problem, "token")
    backend, where = _backend(backend, problem.device, regime, _fuses(problem, "token"))
    return Plan(backend, "token", regime, f"one layer reads and writes tokens; {where}")


def plan_gram(width: int, device: str) -> Plan:
    """The plan of a context Gram matrix, whose backend no caller chooses."""
    regime = _gram_regime(max(width, 2))  # a matrix of one number is as tiny; only a network needs a feature beside it
    backend, where = _backend("auto", device, regime, width <= TILE_WIDTH)
    return Plan(backend, "gram", regime, f"a Gram matrix is one pass over the context; {where}")


def plan_quadratics(problem: QuadraticProblem, backend: str) -> Plan:
    """The plan of a learned first-order method."""
    regime = _gram_regime(problem.weights + 1)
    backend, where = _backend(backend, problem.device, regime, problem.weights <= TILE_WIDTH)
    return Plan(backend, "gram", regime, f"quadratics are in Gram space already; {where}")


def plan_attention(key_width: int, value_width: int, device: str, backend: str) -> Plan:
    """The plan of linear attention with factored heads."""
    chosen, where = _backend(backend, device, "factored heads", max(key_width, value_width) <= HEAD_WIDTH)
    if chosen == "triton" and max(key_width, value_width) > HEAD_WIDTH:
        chosen, where = "torch", f"heads wider than {HEAD_WIDTH} go through torch's batched matrix products"
    return Plan(chosen, "gram", "factored heads", f"keys are summed to one matrix a head; {where}")


def plan_update(dtype: torch.dtype, device: str, backend: str) -> Plan:
    """The plan of a register update."""
    check_choice("backend", backend, BACKENDS)
    regime, why = "one pass", "every register is read once"
    if backend != "auto":
        build.require(backend, device)
        chosen, where = backend, "the backend was asked for"
    elif device == "cuda" and not build.INTERPRETS and build.available("triton"):
        chosen, where = "triton", "one fused Triton kernel"
    elif device == "cpu" and build.available("cpu"):
        chosen, where = "cpu", "one native loop on all threads"
    else:
        chosen, where = "torch", f"torch is the only backend here for tensors on {device}, see build_info()"
    if chosen == "cpu" and dtype in (torch.bfloat16, torch.float16):
        chosen, where = "torch", "the native loop reads float32 and float64 alone"
    return Plan(chosen, "token", regime, f"{why}; {where}")


def _algorithm(problem: Problem, requested: str) -> tuple[str, str]:
    if requested == "gram" and problem.token_axis:
        raise ValueError(
            'algorithm: expected "token" or "auto", since gamma or beta has a token axis and a coefficient per token '
            'does not commute with the tokens, got "gram"'
        )
    if requested != "auto":
        return requested, "the algorithm was asked for"
    if problem.token_axis:
        return "token", "gamma or beta has a token axis, so tokens must be updated one by one"
    if problem.width > problem.tokens:
        return "token", "there are fewer tokens than features, so N-by-D tokens are smaller than D-by-D matrices"
    return "gram", "no coefficient varies along the token axis, so all layers run on D-by-D matrices"


def _fuses(problem: Problem, algorithm: str) -> bool:
    """Whether one program of the Triton kernels can keep a task on chip."""
    if algorithm == "gram" and problem.structure == "response-only":
        return problem.width <= TILE_WIDTH
    return problem.width <= FUSED_WIDTH and (algorithm == "gram" or problem.tokens <= FUSED_TOKENS)


def _backend(requested: str, device: str, regime: str, fuses: bool) -> tuple[str, str]:
    check_choice("backend", requested, BACKENDS)
    if requested != "auto":
        build.require(requested, device)
        if requested == "cpu" and not regime.startswith("tiny"):
            return "torch", "the native library hands what is not tiny to torch's batched matrix products"
        return requested, "the backend was asked for"
    if device == "cuda" and not fuses:
        return "torch", "torch's batched matrix products serve tasks that one program cannot keep on chip"
    if device == "cuda" and not build.INTERPRETS and build.available("triton"):
        return "triton", "one fused Triton kernel runs all layers of a task"
    if device != "cpu":
        return "torch", f"torch is the only backend here for tensors on {device}, see build_info()"
    if not regime.startswith("tiny"):
        return "torch", "torch's batched matrix products serve what is not tiny"
    if not build.available("cpu"):
        return "torch", "the native library is missing, see build_info()"
    return "cpu", "tiny problems run one task per SIMD lane"


def _regime(problem: Problem, algorithm: str) -> str:
    if algorithm == "gram":
        return _gram_regime(problem.width, problem.structure == "response-only")
    if 1 < problem.width <= TINY_WIDTH and problem.tokens <= TINY_TOKENS:
        return "tiny token"
    return "tile" if problem.width <= TILE_WIDTH else "large"


def _gram_regime(width: int, features_stay: bool = True) -> str:
    if 1 < width <= TINY_WIDTH + features_stay:
        return "tiny Gram"
    return "tile" if width <= TILE_WIDTH else "large"

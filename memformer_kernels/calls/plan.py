"""From a problem to a backend, an algorithm and a regime: every dispatch rule of the package, in one place.

Rules look at shapes, structure and device, not at values or timings, so that the same call takes the same path each
time. They do not look at the number of tasks either, so that a compiled graph serves every batch size. What does depend
on it is how work is cut up: `gram_splits`, `tasks_a_sum` and `programs` of `backends.triton.rules`, the splits of
Triton's attention, and the pieces in which the PyTorch backend takes a batch.
"""

import torch

from memformer_kernels import availability
from memformer_kernels.calls.arguments import Plan
from memformer_kernels.calls.checks import ALGORITHMS, BACKENDS, HALF, check_choice
from memformer_kernels.calls.limits import (
    HEAD_WIDTH,
    LARGEST_TASK,
    LAYER_REGISTERS,
    LONGEST,
    LONGEST_RAGGED,
    TILE_WIDTH,
    TINY_CONTEXT,
    TINY_TOKENS,
    TINY_WIDTH,
    WIDE_MATRICES,
    WIDE_WEIGHTS,
    WIDE_WIDTH,
    WIDEST,
    WIDEST_MATRICES,
)
from memformer_kernels.calls.problem import Problem, QuadraticProblem


def plan_stack(problem: Problem, backend: str, algorithm: str) -> Plan:
    """The plan of a stack."""
    return _with_weighted_rows(problem, plan_network(problem, backend, algorithm))


def plan_network(problem: Problem, backend: str, algorithm: str) -> Plan:
    """The plan of a prediction or a loss, and of a stack of tokens without weights."""
    check_choice("algorithm", algorithm, ALGORITHMS)
    problem = problem._replace(device=availability.place(problem.device))
    algorithm, why = _algorithm(problem, algorithm)
    regime = _regime(problem, algorithm)
    on_triton = _on_triton(problem, algorithm, problem.structure == "response-only")
    if regime == "tiny Gram" and problem.device == "cuda" and problem.tokens > TINY_CONTEXT:
        regime, on_triton = "tile", _SPREAD
    multiplies = algorithm == "gram" and problem.width <= WIDE_MATRICES
    if (problem.structure == "response-only" or multiplies) and _counted(problem.tokens, problem.width, ragged=False):
        regime = _wide_on_a_cpu(problem.device, regime, problem.width, algorithm)
    if problem.responses != 1:
        backend, where = _of_several(f"responses = {problem.responses}", backend)
    else:
        backend, where = _backend(backend, problem.device, problem.number, regime, on_triton)
    if problem.weighted and backend != "torch":
        features_stay = problem.structure == "response-only"
        where += _SUMMED_BY_WEIGHT if takes_weights(backend, algorithm, problem.width, features_stay) else _SCALED
    return Plan(backend, algorithm, regime, f"{why}; {where}")


def plan_prefixes(problem: Problem, backend: str) -> Plan:
    """The plan of a prediction of every token, or its loss, which always works in Gram space."""
    check_choice("backend", backend, BACKENDS)
    device = availability.place(problem.device)
    counted = _counted(problem.tokens, problem.width, ragged=False)
    regime = _gram_regime(problem.width, problem.structure == "response-only") if counted else "large"
    if backend != "auto":
        availability.require(backend, device, problem.number)
    chosen, where = "torch", _PREFIXES_ON_TORCH
    if backend == "torch":
        where = _ASKED
    elif backend in ("auto", "cpu") and device == "cpu" and regime == "tiny Gram":
        if availability.available("cpu"):
            chosen, where = "cpu", _TINY
        else:
            where = _nothing_else(device, problem.number)
    return Plan(chosen, "gram", regime, f"all layers run on a Gram matrix that grows by a token at a time; {where}")


def plan_layer(problem: Problem, earlier: int, backend: str) -> Plan:
    """The plan of one layer after `earlier` registers, which always works on tokens: its output is tokens."""
    problem = problem._replace(device=availability.place(problem.device))
    regime = _regime(problem, "token")
    counted = _counted(problem.tokens, problem.width, problem.lengths is not None)
    if TINY_WIDTH < problem.width <= WIDE_MATRICES and counted:
        regime = _wide_on_a_cpu(problem.device, regime, problem.width, "token")
    if problem.device == "cuda" and earlier > LAYER_REGISTERS and regime.startswith("tiny"):
        regime = "tile"
    backend, where = _backend(
        backend, problem.device, problem.number, regime, _on_triton(problem, "token", vectors=False)
    )
    plan = Plan(backend, "token", regime, f"one layer reads and writes tokens; {where}")
    return _with_weighted_rows(problem, plan)


def plan_gram(tokens: int, width: int, ragged: bool, device: str, number: int = 0) -> Plan:
    """The plan of a context Gram matrix, whose backend no caller chooses."""
    device = availability.place(device)
    # A matrix of one number is as tiny; only a network needs a feature too.
    regime = "large"
    if _counted(tokens, width, ragged):
        regime = _wide_on_a_cpu(device, _gram_regime(max(width, 2)), width, "gram")
    backend, where = _backend("auto", device, number, regime, _ONE_PASS if width <= WIDEST else None)
    return Plan(backend, "gram", regime, f"a Gram matrix is one pass over the context; {where}")


def plan_quadratics(problem: QuadraticProblem, backend: str) -> Plan:
    """The plan of a learned first-order method."""
    problem = problem._replace(device=availability.place(problem.device))
    regime = _quadratics_regime(problem)
    on_triton = _ONE_LAUNCH if problem.weights <= TILE_WIDTH else None
    if problem.per_task:
        backend, where = _of_torch_alone(backend, "gamma or beta has an axis of tasks", _OF_TASKS)
    elif problem.columns:
        backend, where = _of_several("b has columns", backend)
    else:
        backend, where = _backend(backend, problem.device, problem.number, regime, on_triton)
    return Plan(backend, "gram", regime, f"quadratics are in Gram space already; {where}")


def plan_proximal(problem: QuadraticProblem, backend: str) -> Plan:
    """The plan of a first-order method whose steps end in a prox.

    Raises ValueError for a backend that has none, and for coefficients of each task, which no prox goes with.
    """
    if problem.per_task:
        raise ValueError(
            "gamma, beta: expected no axis of tasks where steps end in a prox (level, lower, upper or radius), got one"
        )
    if check_choice("backend", backend, BACKENDS) not in ("auto", "torch", "cpu"):
        raise ValueError(
            'backend: expected "auto", "torch" or "cpu", since steps that end in a prox (level, lower, upper or '
            f'radius) have native kernels on a CPU alone, got "{backend}"'
        )
    problem = problem._replace(device=availability.place(problem.device))
    regime = _quadratics_regime(problem)
    if problem.columns:
        backend, where = _of_several("b has columns", backend)
    elif backend == "auto" and problem.device != "cpu":
        backend, where = "torch", "native kernels for them are there on a CPU alone"
    else:
        backend, where = _backend(backend, problem.device, problem.number, regime, None)
    return Plan(backend, "gram", regime, f"quadratics are in Gram space already, and steps end in a prox; {where}")


def plan_attention(key_width: int, value_width: int, device: str, backend: str, number: int = 0) -> Plan:
    """The plan of linear attention with factored heads."""
    chosen, where = _one_pass(
        backend,
        device,
        number,
        on_triton="fused Triton kernels read and write each token once",
        on_cpu="native kernels keep a chunk of tokens and a head's sum in a core's caches",
    )
    if chosen != "torch" and max(key_width, value_width) > HEAD_WIDTH:
        chosen, where = "torch", f"heads wider than {HEAD_WIDTH} go through torch's batched matrix products"
    return Plan(chosen, "gram", "factored heads", f"keys are summed to one matrix a head; {where}")


def plan_update(dtype: torch.dtype, device: str, backend: str, number: int = 0) -> Plan:
    """The plan of a register update."""
    chosen, where = _one_pass(
        backend, device, number, on_triton="one fused Triton kernel", on_cpu="one native loop on all threads"
    )
    if chosen == "cpu" and dtype in HALF:
        chosen, where = "torch", "the native loop reads float32 and float64 alone"
    return Plan(chosen, "token", "one pass", f"every register is read once; {where}")


def takes_weights(backend: str, algorithm: str, width: int, features_stay: bool) -> bool:
    """Whether a backend's predictions and losses take weights of tokens as they are, their gradients with them.

    features_stay: the network is response-only.
    """
    return backend == "torch" or (backend == "cpu" and algorithm == "gram" and width <= TINY_WIDTH + features_stay)


def _with_weighted_rows(problem: Problem, plan: Plan) -> Plan:
    """The plan where the context's tokens come back: kernels see tokens scaled by their weights, and a weight of 0
    leaves nothing of a token to bring back."""
    if not problem.weighted or plan.backend == "torch":
        return plan
    return plan._replace(backend="torch", reason="torch moves tokens that have weights, some of which may be 0")


def _one_pass(requested: str, device: str, index: int, on_triton: str, on_cpu: str) -> tuple[str, str]:
    """The backend of an operation that reads its tokens once, whatever their number, and why."""
    check_choice("backend", requested, BACKENDS)
    if requested == "cuda":
        availability.require(requested, device, index)
        return "torch", "the CUDA library has kernels for networks, layers and quadratics alone"
    if requested != "auto":
        availability.require(requested, device, index)
        return requested, _ASKED
    if device == "cuda" and _triton_serves(index):
        return "triton", on_triton
    if device == "cpu" and availability.available("cpu"):
        return "cpu", on_cpu
    return "torch", _nothing_else(device, index)


def _triton_serves(index: int) -> bool:
    """Whether the Triton kernels can run on a GPU, compiled."""
    return not availability.INTERPRETS and availability.available("triton") and availability.triton_fault(index) is None


def _nothing_else(device: str, index: int) -> str:
    fault = None
    if device == "cpu":
        fault = availability.fault("cpu")
        availability.tell_of_fallback("cpu")
    elif device == "cuda" and not availability.INTERPRETS:
        fault = availability.fault("triton") or availability.triton_fault(index)
    why = "" if fault is None else f" ({fault})"
    return f"torch is the only backend here for tensors on {device}{why}, see build_info()"


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


def _on_triton(problem: Problem, algorithm: str, vectors: bool) -> str | None:
    """Why the Triton kernels serve a task on a GPU, or None where they have nothing to fuse.

    vectors: registers are vectors, since only the response column moves.
    """
    if fuses(problem.width, problem.tokens, algorithm, vectors):
        return _ONE_LAUNCH
    return None if vectors else _ONE_PASS_A_LAYER


_ASKED = "the backend was asked for"
_ONE_LAUNCH = "one fused Triton kernel runs all layers of a task"
_SUMMED_BY_WEIGHT = "; Gram matrices are summed by weight in a pass of their own, which has gradients for weights too"
_SCALED = "; tokens are scaled by their weights first, and where weights require a gradient torch makes all of them"
_TINY = "tiny problems run one task per SIMD lane"
_SEVERAL = "the kernels of other backends keep one response a task, where torch's products take all of them at once"
_OF_TASKS = "the kernels of other backends read coefficients that all tasks share"
_PREFIXES_ON_TORCH = "every prefix has native kernels for tiny networks on a CPU, and is torch's elsewhere"
_SPREAD = f"tasks of more than {TINY_CONTEXT} tokens are spread over many programs of the Triton kernels"
_ALONG_A_TASK = "vectors run along the features or tokens of one task, which stays in a core's caches"
_ONE_PASS = "one Triton kernel streams the context"
_ONE_PASS_A_LAYER = "products of large tasks go through torch, and one fused Triton pass a layer updates the registers"


def _backend(requested: str, device: str, index: int, regime: str, on_triton: str | None) -> tuple[str, str]:
    check_choice("backend", requested, BACKENDS)
    tiny, wide = regime.startswith("tiny"), regime.startswith("wide")
    if requested != "auto":
        availability.require(requested, device, index)
        if requested in ("cpu", "cuda") and not (tiny or wide):
            return "torch", "the native libraries hand what is not tiny to torch's batched matrix products"
        return requested, _ASKED
    if device == "cuda" and tiny and availability.available("cuda") and availability.cuda_fault(index) is None:
        return "cuda", "tiny problems run one task per thread, or a few threads, reading tokens once"
    if device == "cuda" and on_triton is None:
        return "torch", "torch's batched matrix products serve what is too wide for one program"
    if device == "cuda" and on_triton is not None and _triton_serves(index):
        return "triton", on_triton
    if device != "cpu":
        return "torch", _nothing_else(device, index)
    if not (tiny or wide):
        return "torch", "torch's batched matrix products serve what is not tiny"
    if not availability.available("cpu"):
        return "torch", _nothing_else(device, index)
    return "cpu", _TINY if tiny else _ALONG_A_TASK


def _of_several(said: str, requested: str) -> tuple[str, str]:
    """The backend of several responses, and why.

    A kernel keeps one column of a task where it is fastest, in a lane's registers or a core's caches, with sizes that
    it was compiled for: m columns want kernels of their own. Each column as one more task would read and multiply a
    task's matrix m times, which a product with all columns at once does not.
    """
    return _of_torch_alone(requested, said, _SEVERAL)


def _of_torch_alone(requested: str, said: str, why: str) -> tuple[str, str]:
    """The torch backend and why, where no other one serves what is said of the arguments."""
    check_choice("backend", requested, BACKENDS)
    if requested not in ("auto", "torch"):
        raise ValueError(f'backend: expected "auto" or "torch", since {said} and {why}, got "{requested}"')
    return "torch", _ASKED if requested == "torch" else why


def _counted(tokens: int, width: int, ragged: bool) -> bool:
    """Whether the native libraries count so far. A size that a compiler leaves open is taken to be one of those."""
    if not isinstance(tokens, int) or not isinstance(width, int):
        return True
    return tokens * width <= LARGEST_TASK and (not ragged or tokens <= LONGEST_RAGGED)


def _regime(problem: Problem, algorithm: str) -> str:
    if not _counted(problem.tokens, problem.width, problem.lengths is not None):
        return "large"
    if algorithm == "gram":
        return _gram_regime(problem.width, problem.structure == "response-only")
    if 1 < problem.width <= TINY_WIDTH and problem.tokens <= TINY_TOKENS:
        return "tiny token"
    return "tile" if problem.width <= TILE_WIDTH else "large"


def _wide_on_a_cpu(device: str, regime: str, width: int, algorithm: str) -> str:
    """The regime of what has kernels of its own on a CPU where it is not tiny."""
    if device != "cpu" or regime.startswith("tiny") or not 1 < width <= WIDE_WIDTH:
        return regime
    return "wide Gram" if algorithm == "gram" else "wide token"


def _quadratics_regime(problem: QuadraticProblem) -> str:
    regime = _gram_regime(problem.weights + 1)
    if problem.weights > WIDE_WEIGHTS:
        return regime
    return _wide_on_a_cpu(problem.device, regime, problem.weights + 1, "gram")


def _gram_regime(width: int, features_stay: bool = True) -> str:
    if 1 < width <= TINY_WIDTH + features_stay:
        return "tiny Gram"
    return "tile" if width <= TILE_WIDTH + features_stay else "large"


def fuses(width: int, tokens: int, algorithm: str, response_only: bool) -> bool:
    """Whether a program of the fused kernels can keep a task of this size."""
    if algorithm == "gram" and response_only:
        return width <= WIDEST
    return width <= WIDEST_MATRICES and (algorithm == "gram" or tokens <= LONGEST)

"""Calls of the CUDA kernels' host build: blocks run thread by thread on the CPU, straight from tensors to numbers.

A call's arguments go over as one list of 64-bit integers (tests/native/host_blocks/numbers.h): sizes, addresses and
strides.
"""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from memformer_kernels.testing import Case

ROOT = Path(__file__).parents[2]
BLOCKS = ROOT / "tests" / "native" / "host_blocks"
COMPILER = shutil.which("g++")
STORAGES = {torch.float32: 1, torch.float64: 2, torch.bfloat16: 3, torch.float16: 4}
FORWARD, BACKWARD, LOSS, LOSS_BACKWARD = range(4)


def compile_blocks(name: str, folder: Path) -> ctypes.CDLL:
    """The host build of tests/native/host_blocks/<name>.cpp, loaded; CXXFLAGS of the environment come last."""
    library = folder / f"{name}.so"
    command = [
        str(COMPILER),
        *("-std=c++17", "-O1", "-shared", "-fPIC", "-Wno-unknown-pragmas"),
        *os.environ.get("CXXFLAGS", "").split(),
        *("-I", str(ROOT / "csrc"), "-I", str(BLOCKS), str(BLOCKS / f"{name}.cpp"), "-o", str(library)),
    ]
    # What is loaded before this process, a sanitizer, would only slow the compiler.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return ctypes.CDLL(str(library))


def send(function: "ctypes._NamedFuncPointer", numbers: Sequence[int], wide: bool, order: int) -> None:
    """Runs a host kernel on a list of numbers; threads take turns in the given order (host_block.h)."""
    function((ctypes.c_int64 * len(numbers))(*numbers), ctypes.c_int(wide), ctypes.c_uint(order))


def array(tensor: Tensor | None, axes: int = 3) -> list[int]:
    """Address, storage and strides."""
    if tensor is None:
        return [0, 0, 0, 0, 0]
    strides = [*tensor.stride(), 0, 0][:axes]
    return [tensor.data_ptr(), STORAGES[tensor.dtype], *strides, *[0] * (3 - axes)]


def parameter(
    tensor: Tensor | None,
    size: Sequence[int] = (1, 1, 1, 1, 1),
    *,
    axes: Sequence[int] = (),
    grad: Tensor | None = None,
    matrix: bool = False,
    present: bool | None = None,
    corner: int = 0,
    lower: bool = False,
    first_column: int = 0,
    rows: tuple[int, int] = (0, 0),
) -> list[int]:
    """A parameter: its dense `size`, and the tensor whose axes stand for `axes` of the five."""
    given, stride = ([1, 1, 1, 0, 0] if matrix else [1] * 5), [0] * 5
    if tensor is not None:
        for axis, extent, step in zip(axes, tensor.shape, tensor.stride(), strict=True):
            given[axis], stride[axis] = extent, step if extent > 1 else 0
    there = tensor is not None if present is None else present
    return [
        int(there),
        0 if tensor is None else tensor.data_ptr(),
        0 if tensor is None else STORAGES[tensor.dtype],
        *size,
        *given,
        *stride,
        int(matrix),
        corner,
        int(lower),
        first_column,
        *rows,
        0 if grad is None else grad.data_ptr(),
        0 if grad is None else STORAGES[grad.dtype],
    ]


def kept_registers(heads: int, *coefficients: Tensor | None) -> int:
    """H where a coefficient has a head axis larger than 1, else 1."""
    return heads if any(x is not None and x.shape[-3] > 1 for x in coefficients) else 1


class NetworkCall:
    """A network on the host blocks: results and gradients, poisoned beforehand, are tensors of this object."""

    def __init__(self, case: Case, *, stack: bool = False, layers: bool = False) -> None:
        self.case, self.stack = case, stack
        z = case.z
        self.tasks, self.tokens, self.width = z.shape
        self.ragged = isinstance(case.context, Tensor)
        self.context = self.tokens if self.ragged else case.context if case.context is not None else self.tokens - 1
        free = 1 if self.ragged else self.tokens - int(self.context)
        self.queries = free if case.queries is None else case.queries
        self.dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
        depth = case.q.shape[0]
        shape = (self.tasks, self.tokens, self.width) if stack else (depth if layers else 1, self.tasks, self.queries)
        self.result = self._poison(*shape, dtype=z.dtype if stack else self.dtype)
        self.loss = self._poison(1)
        self.grad_target = self._poison(self.tasks, self.queries)
        self.grads = {
            name: self._poison(*value.shape, dtype=value.dtype)
            for name, value in (("z", z), ("q", case.q), ("p", case.p), ("gamma", case.gamma), ("beta", case.beta))
            if value is not None
        }

    def _poison(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.full(shape, torch.nan, dtype=dtype or self.dtype)

    def numbers(self, which: int, grad: Tensor | None = None, *, wants_z: bool = True) -> list[int]:
        """The call for a pass; `grad` is the result's gradient."""
        case, backward = self.case, which in (BACKWARD, LOSS_BACKWARD)
        if which == LOSS_BACKWARD:  # in the loss's own dtype, as NativeBackend.loss allocates them
            self.grads = {name: self._poison(*grad.shape) for name, grad in self.grads.items()}
        q, p, gamma, beta = case.q, case.p, case.gamma, case.beta
        layers, heads = q.shape[:2]
        response = p is None and q.shape[-1] < self.width
        kept = kept_registers(heads, gamma, beta)
        block = p is not None and q.shape[-1] < self.width and p.shape[-1] < self.width
        size = self.width - 1 if block or response else self.width
        columns, first_column = (1, self.width - 1) if response else (self.width, 0)
        every = self.ragged or self.stack
        rows = self.tokens if every else int(self.context) + self.queries
        place = (self.tokens, self.tokens) if every else (int(self.context), self.tokens - self.queries)
        diagonal = gamma is None or gamma.ndim == 4
        gamma_rows = 1 if gamma is None or gamma.shape[-2] == 1 else rows
        beta_rows = 1 if beta is None or beta.shape[-2] == 1 else rows
        wanted = self.grads if backward else {}
        result = self.result if grad is None else grad
        lengths = case.context.data_ptr() if isinstance(case.context, Tensor) else 0
        sizes = [self.tokens, self.width, layers, kept if response else heads, kept, int(self.context)]
        target = case.target if which in (LOSS, LOSS_BACKWARD) else None
        return [
            *(which, int(block), int(diagonal), self.tasks, *sizes, -1 if self.stack else self.queries),
            *(gamma_rows, beta_rows, 1 if self.stack else self.result.shape[0], lengths),
            *array(case.z),
            *array(result),
            *array(target, 2),
            *array(self.grads["z"] if backward and wants_z else None),
            *array(self.grad_target if which == LOSS_BACKWARD else None, 2),
            *parameter(
                q,
                (layers, 1, kept if response else heads, size, size),
                axes=(0, 2, 3, 4),
                grad=wanted.get("q"),
                matrix=True,
            ),
            *parameter(
                p,
                (layers, 1, heads, size, size),
                axes=(0, 2, 3, 4),
                grad=wanted.get("p"),
                matrix=True,
                corner=1,
                present=not response,
            ),
            *parameter(
                gamma,
                (layers, 1 if diagonal else layers, kept, gamma_rows, columns),
                axes=(0, 2, 3, 4) if diagonal else (0, 1, 2, 3, 4),
                grad=wanted.get("gamma"),
                lower=not diagonal,
                first_column=first_column,
                rows=place,
            ),
            *parameter(
                beta,
                (layers, 1, kept, beta_rows, columns),
                axes=(0, 2, 3, 4),
                grad=wanted.get("beta"),
                first_column=first_column,
                rows=place,
            ),
            self.loss.data_ptr(),
        ]


def registers(tensor: Tensor | None) -> list[int]:
    """Registers (B, R, N, D): an array of tasks, tokens and features, and the stride of a register."""
    if tensor is None:
        return [0] * 6
    task, register, *rest = tensor.stride()
    return [tensor.data_ptr(), STORAGES[tensor.dtype], task, *rest, register]


class LayerCall:
    """One layer on the host blocks; q, p (H, D, D), gamma (J + 1, R or 1, N or 1, D or 1), beta (R or 1, ...)."""

    def __init__(
        self,
        z: Tensor,
        q: Tensor,
        p: Tensor | None,
        earlier: Sequence[Tensor],
        gamma: Tensor | None,
        beta: Tensor | None,
        context: int | Tensor,
    ) -> None:
        self.z, self.q, self.p, self.gamma, self.beta, self.context = z, q, p, gamma, beta, context
        self.earlier = list(earlier)
        self.kept = kept_registers(q.shape[0], gamma, beta)
        self.result = torch.full_like(z, torch.nan)
        self.fresh = torch.full((z.shape[0], self.kept, *z.shape[1:]), torch.nan, dtype=z.dtype)
        named = {"z": z, "q": q, "p": p, "gamma": gamma, "beta": beta}
        self.grads = {name: torch.full_like(value, torch.nan) for name, value in named.items() if value is not None}
        self.grad_earlier = [torch.full_like(register, torch.nan) for register in earlier]

    def numbers(self, grad: Tensor | None = None, grad_fresh: Tensor | None = None) -> list[int]:
        """The forward call, or with the gradients of both results the backward one."""
        tasks, tokens, width = self.z.shape
        heads, count = self.q.shape[0], len(self.earlier)
        ragged = isinstance(self.context, Tensor)
        gamma_rows, beta_rows = (1 if x is None else x.shape[-2] for x in (self.gamma, self.beta))
        wanted = {} if grad is None else self.grads
        places = (tokens, tokens)
        size = (1, 1, heads, width, width)
        return [
            *(int(grad is not None), tasks, tokens, width, heads, self.kept, count),
            *(tokens if ragged else int(self.context), gamma_rows, beta_rows),
            self.context.data_ptr() if isinstance(self.context, Tensor) else 0,
            *array(self.z),
            *array(self.result if grad is None else grad),
            *array(wanted.get("z")),
            *registers(self.fresh if grad_fresh is None else grad_fresh),
            *(number for register in self.earlier for number in registers(register)),
            *(number for register in self.grad_earlier for number in registers(None if grad is None else register)),
            *parameter(self.q, size, axes=(2, 3, 4), grad=wanted.get("q"), matrix=True),
            *parameter(self.p, size, axes=(2, 3, 4), grad=wanted.get("p"), matrix=True, corner=1, present=True),
            *parameter(
                self.gamma,
                (count + 1, 1, self.kept, gamma_rows, width),
                axes=(0, 2, 3, 4),
                grad=wanted.get("gamma"),
                rows=places,
            ),
            *parameter(
                self.beta, (1, 1, self.kept, beta_rows, width), axes=(2, 3, 4), grad=wanted.get("beta"), rows=places
            ),
            0,
        ]


def gram_numbers(z: Tensor, context: int | Tensor, matrix: Tensor, grad_z: Tensor | None = None) -> list[int]:
    """A context Gram matrix, or with `grad_z` its backward; `matrix` is the result or its gradient."""
    tasks, tokens, width = z.shape
    lengths = context.data_ptr() if isinstance(context, Tensor) else 0
    labelled = tokens if isinstance(context, Tensor) else context
    sizes = [int(grad_z is not None), tasks, tokens, width, labelled, lengths]
    return [*sizes, *array(z), *array(matrix), *array(grad_z)]

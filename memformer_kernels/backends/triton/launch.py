"""Launching: the device of the tensors, and whether kernels run on it, in Triton's interpreter, or not at all."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from memformer_kernels.availability import triton_on_host
from memformer_kernels.backends.triton import rules
from memformer_kernels.triton_support import GENERATIONS, Generation

Observer = Callable[[Any, int, dict[str, Any]], object]
"""Takes a kernel, how many programs run it, and its arguments by name, Triton's options among them."""

_OBSERVER: ContextVar[Observer | None] = ContextVar("observer", default=None)

_ARCHITECTURE: ContextVar[int | None] = ContextVar("architecture", default=None)

_MEMORY = 141 * 10**9
"""Of an H200, in bytes."""


def launch(kernel: Any, programs: int, **arguments: Any) -> None:
    """Launches a kernel on the GPU of its first tensor; under `observed` the observer gets the launch instead.

    arguments: the kernel's own, tensors and numbers in NamedTuples as it names them, and Triton's options. `C`, where a
    kernel has one, is the NamedTuple of what is compiled in.
    """
    first = next(tensors(arguments.values()))
    if not interpreted():
        if "C" in arguments:
            arguments["C"] = _compiled_in(arguments["C"].__class__, arguments["C"])
        form = _generation(first.device).compiled_as
        if form is not None:
            arguments["arch"] = f"sm{form}"
    observer = _OBSERVER.get()
    with on_device(first):
        if observer is None:
            kernel[(programs,)](**arguments)
        else:
            observer(kernel, programs, arguments)


@cache
def _compiled_in(kind: Callable[..., Any], constants: tuple[Any, ...]) -> Any:
    """The same NamedTuple of Triton's constants: a field of it is then to the compiler what a parameter would be.

    kind: its class, by which equal tuples of two kernels are told apart.
    """
    return kind(*map(triton.language.constexpr, constants))


def tensors(arguments: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among arguments, and in the tuples among them."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, tuple):
            yield from tensors(argument)


def in_slots(given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Tensors of one shape with the first repeated in front, up to the next power of 2: a kernel's slots.

    A kernel is compiled for their number, which grows by one from layer to layer, and skips those in front.
    """
    return given[:1] * (triton.next_power_of_2(len(given)) - len(given)) + given if given else ()


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Hands every launch to `observer` and makes none: results stay uninitialised."""
    token = _OBSERVER.set(observer)
    try:
        yield
    finally:
        _OBSERVER.reset(token)


def compile_only() -> AbstractContextManager[None]:
    """Compiles the kernels of the calls made inside for their arguments, and loads them, but runs none."""
    return observed(_load)


def _load(kernel: Any, programs: int, arguments: dict[str, Any]) -> None:
    compiled = kernel.warmup(grid=(1,), **arguments)
    # Triton loads a kernel's code onto the GPU when its launcher is first asked for, which a capture must not do.
    _ = compiled.run


def architecture(device: torch.device) -> int:
    """Ten times the compute capability whose instructions kernels for a device are compiled to.

    That is a GPU's own but where `triton_support` has another; for CPU tensors of what `compiling_for` says, or of the
    host's driver, or of an H200.
    """
    return _generation(device).compiled_as or _capability(device)


def _generation(device: torch.device) -> Generation:
    return GENERATIONS[_capability(device) // 10]


def _capability(device: torch.device) -> int:
    if device.type == "cuda":
        return _capability_of(device.index)
    driver = None if interpreted() else triton_on_host()
    return _ARCHITECTURE.get() or (90 if driver is None else driver.get_current_target().arch)


@cache
def _capability_of(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


@cache
def _machine(index: int) -> rules.Machine:
    properties = torch.cuda.get_device_properties(index)
    return rules.Machine(properties.multi_processor_count, properties.total_memory)


def _on_host() -> rules.Machine:
    """Of CPU tensors: the host driver's, or an H200, which everything is cut up for where there is no GPU at all."""
    driver = None if interpreted() else triton_on_host()
    if driver is None:
        return rules.Machine(rules.MULTIPROCESSORS, _MEMORY)
    return rules.Machine(driver.utils.get_device_properties(0)["multiprocessor_count"], _MEMORY)


def tasks_a_sum(like: Tensor, batch: int, at_once: int, warps: int, tiles: int = 1, *, numbers: int) -> int:
    """`rules.tasks_a_sum`, the same on every GPU; for CPU tensors by the multiprocessors of what stands for one.

    A virtual GPU has few: each then sums over as many tasks as one of a whole GPU's with its share of a batch.

    numbers: of a partial sum, of the dtype of `like`.
    """
    multiprocessors = rules.MULTIPROCESSORS if like.is_cuda else _on_host().multiprocessors
    return rules.tasks_a_sum(batch, at_once, warps, tiles, numbers * like.itemsize, multiprocessors)


@contextmanager
def compiling_for(capability: int) -> Iterator[None]:
    """Makes calls on CPU tensors choose what they would choose on a GPU of ten times this compute capability."""
    token = _ARCHITECTURE.set(capability)
    try:
        yield
    finally:
        _ARCHITECTURE.reset(token)


def interpreted() -> bool:
    """Whether Triton was imported with TRITON_INTERPRET=1, and so runs its kernels on the CPU."""
    return bool(triton.knobs.runtime.interpret)


def check_tensor(tensor: Tensor) -> None:
    """Whether kernels can run on a tensor, one of those that set a call's device and its tokens' dtype.

    The interpreter computes with NumPy, which has no bfloat16: it multiplies the bits of such numbers as integers, and
    cuts off what it should round.

    Raises:
        RuntimeError: a CPU tensor, and kernels are compiled for a GPU; or bfloat16, and kernels are interpreted.
    """
    if interpreted():
        if tensor.dtype == torch.bfloat16:
            raise RuntimeError(
                'backend="triton" got bfloat16 tensors, and products of such are wrong in the interpreter of Triton: '
                "give it float16 or float32, choose another backend, or unset TRITON_INTERPRET to run compiled kernels "
                "on a GPU"
            )
    elif not tensor.is_cuda and triton_on_host() is None:
        raise RuntimeError(
            f'backend="triton" got tensors on {tensor.device}, and its kernels run on CUDA GPUs: move the tensors to '
            "one, choose another backend, or set TRITON_INTERPRET=1 before triton is first imported to run the "
            "kernels in Triton's interpreter"
        )


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes the tensor's GPU the current one for a launch."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def scratch_of(like: Tensor, pieces: int, size: int, warps: int, running: int = 0) -> tuple[int, Tensor]:
    """How many programs of so many warps share so many pieces of work, and memory of `size` numbers for each of them.

    For CPU tensors, which no GPU has, as on an H200.

    running: numbers of a sum that each program has elsewhere.
    """
    machine = _machine(like.device.index) if like.is_cuda else _on_host()
    programs = rules.programs(pieces, size * like.itemsize, warps, machine, running * like.itemsize)
    return programs, like.new_empty(programs * size)


def strides_of(tensor: Tensor) -> tuple[int, ...]:
    """A tensor's strides as kernels are told them: of an axis of one entry, but for tasks, what it is where tensors are
    contiguous.

    Nothing is read by it, and torch may leave any number there, a multiple of a batch for one. Kernels are compiled for
    strides.
    """
    made, inner = list(tensor.stride()), 1
    for axis in range(tensor.ndim - 1, 0, -1):
        if tensor.shape[axis] == 1:
            made[axis] = inner
        inner *= tensor.shape[axis]
    return tuple(made)


def triton_type(dtype: torch.dtype) -> triton.language.dtype:
    """The accumulator type of kernels that compute in `dtype`."""
    return triton.language.float64 if dtype == torch.float64 else triton.language.float32

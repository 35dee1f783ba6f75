"""A driver for Triton whose GPU is a virtual one: kernels compile to PTX as for a GPU, and run on CPU tensors.

    with driver_of(Device(capability=90)) as driver:
        kernel[(4,)](x, y, size)
    assert driver.device.reports == []

What is used of Triton (3.5 to 3.8) beside its driver protocol: the table of its backends, the last stage of the one for
NVIDIA GPUs, and which driver was active before.
"""

import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends import backends
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.backends.nvidia.compiler import CUDABackend

from virtual_gpu import Device, Kernel, Launch, Module
from virtual_gpu.host_memory import HostMemory

_PACKED = {
    "i1": "<b",
    "i8": "<b",
    "i16": "<h",
    "i32": "<i",
    "i64": "<q",
    "u1": "<B",
    "u8": "<B",
    "u16": "<H",
    "u32": "<I",
    "u64": "<Q",
    "fp16": "<e",
    "fp32": "<f",
    "fp64": "<d",
}
"""How `struct` writes an argument of a Triton type."""

_CONSTANT = "constexpr"
"""The type of an argument that was compiled in, and that a launch leaves out."""


class _PtxBackend(CUDABackend):  # type: ignore[misc]
    """Triton's backend for NVIDIA GPUs, whose last stage hands the PTX on where the other assembles it."""

    def make_cubin(self, src: str, metadata: dict[str, Any], opt: Any, capability: int) -> bytes:
        return src.encode()

    def hash(self) -> str:
        """Another than of Triton's own backend, whose kernels lie in the same cache."""
        return f"virtual-{super().hash()}"


class _Utilities:
    """What Triton's compiler asks of a GPU: its limits, and to load a kernel."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def get_device_properties(self, number: int) -> dict[str, int]:
        return {
            "max_shared_mem": self._device.shared_of_block,
            "max_num_regs": 65536,
            "multiprocessor_count": self._device.multiprocessors,
            "warpSize": 32,
        }

    def load_binary(self, name: str, binary: bytes, shared: int, number: int) -> tuple[Module, Kernel, int, int, int]:
        """The module and the kernel, its registers and spills, which PTX does not fix, and most threads of a block."""
        module = Module.of(binary.decode())
        return module, module.kernels[name], 0, 0, 1024


class _Launcher:
    """Launches one compiled kernel on the device of the driver that is active then."""

    def __init__(self, source: Any, metadata: Any) -> None:
        if metadata.global_scratch_size or metadata.profile_scratch_size:
            raise NotImplementedError(f"{metadata.name} asks the driver for scratch memory")
        self._types = tuple(source.signature.values())
        self._metadata = metadata

    def __call__(
        self,
        x: int,
        y: int,
        z: int,
        stream: int,
        kernel: Kernel,
        packed_metadata: Any,
        launch_metadata: Any,
        enter_hook: Any,
        exit_hook: Any,
        *arguments: Any,
    ) -> None:
        driver = triton.runtime.driver.active
        clusters = self._metadata.num_ctas
        passed = list(_passed(self._types, arguments))
        if enter_hook is not None:
            enter_hook(launch_metadata)
        with driver.memory.visible([value for kind, value in passed if kind[0] == "*"]):
            launch = driver.device.launch(
                kernel,
                (x * clusters, y, z),
                (32 * self._metadata.num_warps, 1, 1),
                _pack(kernel, passed),
                shared=self._metadata.shared,
                cluster=(clusters, 1, 1),
                cooperative=self._metadata.launch_cooperative_grid,
            )
        driver.launches.append(launch)
        if exit_hook is not None:
            exit_hook(launch_metadata)


def _passed(kinds: Any, values: Any) -> Iterator[tuple[str, Any]]:
    """A launch's arguments with their types, those of nested tuples in their place; not those that were compiled in."""
    for kind, value in zip(kinds, values, strict=True):
        if isinstance(kind, tuple):
            yield from _passed(kind, value)
        elif kind != _CONSTANT:
            yield kind, value


def _pack(kernel: Kernel, passed: Sequence[tuple[str, Any]]) -> bytes:
    """The bytes of a kernel's parameters; two pointers to scratch, which Triton adds at the end, stay 0."""
    made = bytearray(kernel.parameter_bytes)
    for (kind, value), parameter in zip(passed, kernel.parameters, strict=False):
        raw = struct.pack("<Q", value.data_ptr()) if kind[0] == "*" else struct.pack(_PACKED[kind], value)
        if len(raw) != parameter.size:
            raise TypeError(f"{kernel.name}: {parameter.name} has {parameter.size} bytes, an argument of {kind} not")
        made[parameter.offset : parameter.offset + parameter.size] = raw
    return bytes(made)


class VirtualDriver(DriverBase):  # type: ignore[misc]
    """Triton's driver of a `Device`; tensors lie on the CPU. Its number is its compute capability.

    launches: all that have ended, in their order.
    """

    launcher_cls = _Launcher

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device
        self.launches: list[Launch] = []
        self.memory = HostMemory(device)
        self.utils = _Utilities(device)

    @property
    def launched(self) -> set[str]:
        """Names of the kernels that have run."""
        return {launch.kernel.name for launch in self.launches}

    @classmethod
    def is_active(cls) -> bool:
        """False: Triton never chooses it by itself."""
        return False

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.device.capability, 32)

    def get_current_device(self) -> int:
        """Kernels compiled for one architecture are another's no more than a GPU's."""
        return self.device.capability

    def set_current_device(self, number: int) -> None:
        if number != self.device.capability:
            raise ValueError(f"the only device is {self.device.capability}, not {number}")

    def get_device_capability(self, number: int | None = None) -> tuple[int, int]:
        return divmod(self.device.capability, 10)

    def get_current_stream(self, number: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, kind: str) -> str:
        raise NotImplementedError("launches need no C++ here")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("a virtual GPU keeps no time")


@contextmanager
def driver_of(device: Device) -> Iterator[VirtualDriver]:
    """Makes Triton compile for `device` and launch on it, with tensors on the CPU, in this process and until the end.

    Memory from `torch.empty` and its kin counts as uninitialised until a kernel or an operation of torch writes it.

    Raises:
        RuntimeError: kernels are interpreted in this process (TRITON_INTERPRET=1), so that none is compiled.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET=1 was set when triton was imported: nothing is compiled in this process")
    driver = VirtualDriver(device)
    before = triton.runtime.driver._active
    compiles = type(backends["nvidia"])(_PtxBackend, backends["nvidia"].driver)
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(backends, nvidia=compiles))
        stack.enter_context(driver.memory.watched())
        triton.runtime.driver.set_active(driver)
        stack.callback(triton.runtime.driver.set_active, before)
        yield driver

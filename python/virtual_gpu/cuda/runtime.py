"""The machine behind the stand-in for the CUDA runtime: devices, the code of kernels, launches, memory."""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from virtual_gpu import Device, Kernel, Launch, Module, Report
from virtual_gpu.cuda import fatbinary
from virtual_gpu.cuda.fatbinary import Ptx
from virtual_gpu.cuda.limits import Error, Refusal, Shape, refuse_launch, refuse_shared

_MAX_DYNAMIC_SHARED, _SHARED_CARVEOUT = 8, 9
_TO_DEVICE, _FROM_DEVICE = 1, 2

_int32, _int64, _uint64, _pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_uint64, ctypes.c_void_p


class _Launch(ctypes.Structure):
    _fields_ = (
        ("device", _int32),
        ("function", _int32),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("cluster", ctypes.c_uint32 * 3),
        ("clustered", _int32),
        ("cooperative", _int32),
        ("shared", _uint64),
        ("stream", _pointer),
        ("arguments", _pointer),
        ("argument_bytes", _uint64),
    )


class _Machine(ctypes.Structure):
    _fields_ = (
        ("devices", _int32),
        ("latest_first", _int32),
        ("pack", ctypes.CFUNCTYPE(_int64, _int32, _int32, ctypes.POINTER(_pointer), _pointer, _int64)),
        ("launch", ctypes.CFUNCTYPE(_int32, ctypes.POINTER(_Launch))),
        ("set_attribute", ctypes.CFUNCTYPE(_int32, _int32, _int32, _int32, _int32)),
        ("attributes", ctypes.CFUNCTYPE(_int32, _int32, _int32, ctypes.POINTER(ctypes.c_size_t))),
        ("device_attribute", ctypes.CFUNCTYPE(_int32, _int32, _int32, ctypes.POINTER(_int32))),
        ("copy", ctypes.CFUNCTYPE(_int32, _int32, _pointer, _pointer, _uint64, _int32, _pointer)),
        ("synchronize", ctypes.CFUNCTYPE(_int32, _int32, _pointer)),
        ("allocated", ctypes.CFUNCTYPE(None, _int32, _pointer, _uint64)),
        ("freed", ctypes.CFUNCTYPE(None, _int32, _pointer)),
        ("wrote", ctypes.CFUNCTYPE(None, _int32, _pointer, _uint64)),
    )


@dataclass(frozen=True)
class Launched:
    """A kernel that a device has run, and on which stream."""

    device: int
    shape: Shape
    stream: int
    launch: Launch


class Binary(NamedTuple):
    """What a library registered for one of its sources: programs for several architectures."""

    programs: tuple[Ptx, ...]

    def for_capability(self, capability: int) -> Ptx | None:
        """The newest program that a driver can compile for a device of this capability, or None."""
        fitting = [one for one in self.programs if one.target <= capability]
        return max(fitting, default=None, key=lambda one: one.target)


class Runtime:
    """What host code linked to the stand-in finds: `devices`, by index, which may be replaced by others between calls.

    There is one for each stand-in that is loaded. `launched` lists what has run since it was last cleared, `loaded`
    names, by device, the kernels whose code it has been asked for. choose: the PTX for a kernel of a binary on a
    device, by number, in place of what a driver would take. Errors other than a kernel's own come out of `calls`.
    """

    def __init__(self, library: Path, devices: Sequence[Device]) -> None:
        self.devices = list(devices)
        self.launched: list[Launched] = []
        self.loaded: set[tuple[int, str]] = set()
        self.choose: Callable[[Binary, str, int], Ptx | None] = self._as_a_driver
        self._reports: list[Report] = []
        self._raised: list[BaseException] = []
        self._allowed: dict[tuple[int, int], int] = {}
        self._binaries: dict[int, Binary] = {}
        self._kernels: dict[tuple[Ptx, str], Kernel] = {}
        self._streams: set[int] = {0}
        self._library = ctypes.CDLL(str(library))
        self._library.virtual_cuda_binary.restype = _pointer
        self._library.virtual_cuda_function.restype = ctypes.c_char_p
        if hasattr(self._library, "virtual_cuda_torch_stream"):
            self._library.virtual_cuda_torch_stream.restype = _pointer
            self._streams |= {self.torch_stream(device) for device in range(len(devices))}
        self._machine = self._connected()

    @contextmanager
    def calls(self) -> Iterator[None]:
        """Around calls of host code: raises what ended a launch, whatever the host code made of the error it was given.

        What a call leaves behind, a device that is lost, is gone at the end.
        """
        try:
            yield
        except Exception as error:
            if not self._raised:
                raise
            raise self._raised[0] from error
        else:
            if self._raised:
                raise self._raised[0]
        finally:
            self._raised.clear()
            self._library.cudaDeviceReset()

    def registered(self) -> set[str]:
        """Names of the kernels of all libraries that are loaded."""
        return {self._function(index)[0] for index in range(self._library.virtual_cuda_functions())}

    def take_reports(self) -> list[Report]:
        """Everything found since the last time, by all devices and by the runtime itself."""
        found = [*self._reports, *(report for device in self.devices for report in device.take_reports())]
        self._reports.clear()
        return found

    def place_tensors(self, device: int) -> None:
        """Where PyTorch's tensors lie, for host code that is called with them; needs a stand-in made with PyTorch."""
        self._library.virtual_cuda_place_tensors(device)

    def torch_stream(self, device: int) -> int:
        """PyTorch's current stream of a device, which is not the default one."""
        return int(self._library.virtual_cuda_torch_stream(device))

    def latest_first(self, chosen: bool) -> None:
        """Whether nodes of graphs run, where their edges leave it open, the last one first."""
        self._machine.latest_first = int(chosen)
        self._library.virtual_cuda_connect(ctypes.byref(self._machine))

    def _as_a_driver(self, binary: Binary, _: str, device: int) -> Ptx | None:
        return binary.for_capability(self.devices[device].capability)

    def _connected(self) -> _Machine:
        given: dict[str, Any] = {
            "pack": self._pack,
            "launch": self._launch,
            "set_attribute": self._set_attribute,
            "attributes": self._attributes,
            "device_attribute": self._device_attribute,
            "copy": self._copy,
            "synchronize": lambda device, stream: self._check_stream(stream),
            "allocated": self._allocated,
            "freed": lambda device, address: self.devices[device].memory.forget(address),
            "wrote": lambda device, address, nbytes: self.devices[device].memory.wrote(address, nbytes),
        }
        types: dict[str, Any] = dict(_Machine._fields_)
        machine = _Machine(len(self.devices), 0, *(types[name](self._guarded(run)) for name, run in given.items()))
        self._library.virtual_cuda_connect(ctypes.byref(machine))
        return machine

    def _guarded(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """What Python raises cannot pass through the host code: kept for the end of `calls`."""

        def guarded(*arguments: Any) -> Any:
            try:
                return run(*arguments)
            except BaseException as error:
                self._raised.append(error)
                return int(Error.LAUNCH_FAILURE)

        return guarded

    def _refused(self, kernel: str, refusal: Refusal) -> int:
        self._reports.append(Report("launch", 1, kernel, "", refusal.reason))
        return int(refusal.error)

    def _function(self, index: int) -> tuple[str, Binary]:
        number = ctypes.c_int()
        name = self._library.virtual_cuda_function(index, ctypes.byref(number)).decode()
        if number.value not in self._binaries:
            at = self._library.virtual_cuda_binary(number)
            data = ctypes.string_at(at, fatbinary.header_bytes(ctypes.string_at(at, 16)))
            self._binaries[number.value] = Binary(tuple(fatbinary.programs(data)))
        return name, self._binaries[number.value]

    def _kernel(self, device: int, function: int) -> Kernel | None:
        name, binary = self._function(function)
        self.loaded.add((device, name))
        program = self.choose(binary, name, device)
        if program is None:
            self._reports.append(Report("launch", 1, name, "", "no code for this device"))
            return None
        key = (program, name)
        if key not in self._kernels:
            self._kernels[key] = Module.of(program.text).kernels[name]
        return self._kernels[key]

    def _pack(self, device: int, function: int, arguments: Any, to: int, room: int) -> int:
        kernel = self._kernel(device, function)
        if kernel is None:
            return -int(Error.NO_KERNEL_IMAGE)
        if kernel.parameter_bytes > room:
            return -int(Error.INVALID_VALUE)
        for k, parameter in enumerate(kernel.parameters):
            ctypes.memmove(to + parameter.offset, arguments[k], parameter.size)
        return kernel.parameter_bytes

    def _launch(self, given: Any) -> int:
        asked = given.contents
        device, kernel = self.devices[asked.device], self._kernel(asked.device, asked.function)
        if kernel is None:
            return int(Error.NO_KERNEL_IMAGE)
        cluster = tuple(asked.cluster) if asked.clustered else None
        shape = Shape(tuple(asked.grid), tuple(asked.block), cluster, asked.shared, bool(asked.cooperative))
        refusal = refuse_launch(device, kernel, shape, self._allowed.get((asked.device, asked.function), 0))
        if refusal is not None:
            return self._refused(kernel.name, refusal)
        if error := self._check_stream(asked.stream):
            return error
        done = device.launch(
            kernel,
            shape.grid,
            shape.block,
            ctypes.string_at(asked.arguments, asked.argument_bytes),
            shared=shape.shared,
            cluster=shape.cluster or (1, 1, 1),
            cooperative=shape.cooperative,
        )
        self.launched.append(Launched(asked.device, shape, asked.stream or 0, done))
        return int(Error.SUCCESS)

    def _set_attribute(self, device: int, function: int, attribute: int, value: int) -> int:
        kernel = self._kernel(device, function)
        if kernel is None:
            return int(Error.NO_KERNEL_IMAGE)
        if attribute == _SHARED_CARVEOUT:
            return int(Error.SUCCESS if -1 <= value <= 100 else Error.INVALID_VALUE)
        if attribute != _MAX_DYNAMIC_SHARED:
            return int(Error.NOT_SUPPORTED)
        refusal = refuse_shared(self.devices[device], kernel, value)
        if refusal is not None:
            return self._refused(kernel.name, refusal)
        self._allowed[device, function] = value
        return int(Error.SUCCESS)

    def _attributes(self, device: int, function: int, found: Any) -> int:
        kernel = self._kernel(device, function)
        if kernel is None:
            return int(Error.NO_KERNEL_IMAGE)
        found[0] = kernel.static_shared  # the first member of cudaFuncAttributes
        return int(Error.SUCCESS)

    def _device_attribute(self, index: int, attribute: int, value: Any) -> int:
        device = self.devices[index]
        known = {
            16: device.multiprocessors,
            75: device.capability // 10,
            76: device.capability % 10,
            81: device.shared_of_multiprocessor,
            97: device.shared_of_block,
        }
        if attribute not in known:
            return int(Error.NOT_SUPPORTED)
        value[0] = known[attribute]
        return int(Error.SUCCESS)

    def _copy(self, index: int, to: int, source: int, nbytes: int, kind: int, stream: int | None) -> int:
        memory = self.devices[index].memory
        if error := self._check_stream(stream):
            return error
        if kind == _TO_DEVICE:
            memory.wrote(to, nbytes)
            return int(Error.SUCCESS if memory.initialised(to, nbytes) else Error.INVALID_VALUE)
        if kind != _FROM_DEVICE:
            return int(Error.NOT_SUPPORTED)
        if not memory.initialised(source, nbytes):
            self._reports.append(Report("uninitialised", 1, "cudaMemcpyAsync", "", f"{nbytes} bytes to the host"))
        return int(Error.SUCCESS)

    def _check_stream(self, stream: int | None) -> int:
        return int(Error.SUCCESS if (stream or 0) in self._streams else Error.INVALID_HANDLE)

    def _allocated(self, index: int, address: int, nbytes: int) -> None:
        self.devices[index].memory.register(address, nbytes, "scratch", initialised=False)

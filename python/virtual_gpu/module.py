"""Compiled PTX: its kernels, each translated for the machine when it is first asked for."""

import ctypes
import functools
import weakref

import numpy as np
from numpy.typing import NDArray

from virtual_gpu.counters import class_of
from virtual_gpu.native import library
from virtual_gpu.ptx.assemble import assemble
from virtual_gpu.ptx.code import Code
from virtual_gpu.ptx.records import records
from virtual_gpu.ptx.source import Function, Parameter, read
from virtual_gpu.ptx.types import UnknownInstruction


class Kernel:
    """A kernel: what a launch must know of it, and its code.

    `parameters` lie in a block of `parameter_bytes`; `threads` is the number that a block has at most, or None; `block`
    and `cluster` are the extents that a launch must have, or None.
    """

    def __init__(self, module: "Module", function: Function) -> None:
        self.module, self._function = module, function
        self.name = function.name
        self.parameters: tuple[Parameter, ...] = function.parameters
        last = self.parameters[-1] if self.parameters else Parameter("", 0, 0)
        self.parameter_bytes = last.offset + last.size
        self.threads, self.block, self.cluster = function.threads, function.block, function.cluster
        self.target, self.specific = module.target, module.source.specific

    def __repr__(self) -> str:
        return f"Kernel({self.name!r})"

    @functools.cached_property
    def code(self) -> Code:
        """The machine's code. Raises UnknownInstruction for PTX that the machine does not execute."""
        return assemble(self.module.source, self.module, self._function)

    @property
    def static_shared(self) -> int:
        """Bytes of shared memory that a block has besides those that the launch asks for."""
        return self.code.static_shared

    @functools.cached_property
    def classes(self) -> NDArray[np.int64]:
        """Of each instruction of the code: the index of its class among counters.CLASSES."""
        return np.array([class_of(instruction.key) for instruction in self.code.instructions], np.int64)

    @functools.cached_property
    def program(self) -> int:
        """The machine's handle of the code; raises UnknownInstruction."""
        packed = records(self.code)
        keys = (ctypes.c_char_p * len(packed.keys))(*(key.encode() for key in packed.keys))
        unknown = library().vgpu_unknown(keys, len(packed.keys))
        if unknown >= 0:
            key = packed.keys[unknown]
            raise UnknownInstruction(next(i.text for i in self.code.instructions if i.key == key) + f" ({key})")
        handle = library().vgpu_program(
            packed.instructions.ctypes.data,
            len(packed.instructions),
            packed.operands.ctypes.data,
            len(packed.operands),
            keys,
            packed.constants,
            len(packed.constants),
            packed.special.ctypes.data,
            len(packed.special),
            packed.register_bytes,
            packed.registers,
            packed.local_bytes,
            packed.static_shared,
        )
        weakref.finalize(self, library().vgpu_free_program, handle)
        return int(handle)


class Module:
    """A PTX file, `text`: `kernels` by name, and the variables that they share.

    Raises ValueError for text that is not PTX.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.source = read(text)
        self.target = self.source.target
        self.variables: dict[str, NDArray[np.uint8]] = {}
        self.kernels = {
            name: Kernel(self, function)
            for name, function in self.source.functions.items()
            if function.entry and function.body is not None
        }

    @staticmethod
    @functools.cache
    def of(text: str) -> "Module":
        """The module of this text, made once."""
        return Module(text)

    def address_of(self, name: str) -> int:
        """Where a variable in global or constant memory lies."""
        if name not in self.variables:
            variable = self.source.variables[name]
            size = max(variable.size, 1)
            raw = np.zeros(size + variable.alignment, np.uint8)
            start = -raw.ctypes.data % variable.alignment
            self.variables[name] = raw[start : start + size]
            self.variables[name][: len(variable.value)] = np.frombuffer(variable.value, np.uint8)
        return int(self.variables[name].ctypes.data)

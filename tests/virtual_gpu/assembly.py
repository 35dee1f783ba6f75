"""Small kernels in PTX, and launches of them on arrays."""

import struct
from collections.abc import Collection, Sequence

import numpy as np

from virtual_gpu import CHECKS, Counters, Device, LaunchFailed, Module
from virtual_gpu.device import Spot

ORDERS = (0, 1, 7)
"""Ascending, descending, and a shuffle."""


def module(body: str, parameters: int = 2, *, target: int = 90, directives: str = "", variables: str = "") -> Module:
    """A module with one kernel, `kernel`. Its parameters are in %a0, %a1 and so on; %t is its thread in its block.

    There are registers of each type: %p (predicates), %h (16 bits), %r (32), %f (float), %d (64), %g (double).
    """
    declared = ",\n".join(f".param .u64 argument{k}" for k in range(parameters))
    loads = "\n".join(f"ld.param.u64 %a{k}, [argument{k}];" for k in range(parameters))
    return Module(
        f"""
.version 8.7
.target sm_{target}
.address_size 64
{variables}
.visible .entry kernel({declared})
{directives}
{{
.reg .pred %p<20>;
.reg .b16 %h<40>;
.reg .b32 %r<80>;
.reg .f32 %f<40>;
.reg .b64 %d<40>;
.reg .f64 %g<20>;
.reg .b64 %a<8>;
.reg .b32 %t;
.loc 1 1 0
{loads}
mov.u32 %t, %tid.x;
{body}
ret;
}}
.file 1 "kernel.cu"
"""
    )


class Run:
    """A launch of such a kernel: what it found, its counters and worst instructions, and whether it ended early."""

    def __init__(
        self,
        module: Module,
        arguments: Sequence[np.ndarray | int],
        *,
        grid: int = 1,
        block: int = 32,
        shared: int = 0,
        order: int = 0,
        capability: int = 90,
        cluster: int = 1,
        cooperative: bool = False,
        uninitialised: Sequence[int] = (),
        read_only: Sequence[int] = (),
        checks: Collection[str] = CHECKS,
    ) -> None:
        device = Device(capability, order=order, multiprocessors=4, checks=checks)
        packed = b""
        for k, argument in enumerate(arguments):
            if isinstance(argument, np.ndarray):
                device.memory.register(
                    argument.ctypes.data,
                    argument.nbytes,
                    f"argument {k}",
                    initialised=k not in uninitialised,
                    writable=k not in read_only,
                )
                packed += struct.pack("<Q", argument.ctypes.data)
            else:
                packed += struct.pack("<Q", argument)
        self.device = device
        self.failed = False
        self.counters = Counters()
        self.worst: list[Spot] = []
        try:
            launch = device.launch(
                module.kernels["kernel"], grid, block, packed, shared=shared, cluster=cluster, cooperative=cooperative
            )
            self.counters = launch.counters
            self.worst = launch.worst()
        except LaunchFailed:
            self.failed = True
        self.reports = device.take_reports()
        self.checks = {report.check for report in self.reports}

"""A GPU on the CPU: runs compiled PTX, checks accesses, counts what a profiler counts.

device = Device(capability=90)
device.memory.register(address, nbytes, "a")
launch = device.launch(Module.of(text).kernels["add"], grid=8, block=128, arguments=struct.pack("<QQi", ...))
assert not device.take_reports()
"""

from virtual_gpu.counters import Counters
from virtual_gpu.device import Device, DeviceMemory, Launch, LaunchFailed
from virtual_gpu.module import Kernel, Module
from virtual_gpu.ptx.types import UnknownInstruction
from virtual_gpu.report import ALL_CHECKS, CHECKS, Report

__all__ = [
    "ALL_CHECKS",
    "CHECKS",
    "Counters",
    "Device",
    "DeviceMemory",
    "Kernel",
    "Launch",
    "LaunchFailed",
    "Module",
    "Report",
    "UnknownInstruction",
]

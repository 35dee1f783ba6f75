"""Virtual GPUs for tests of compiled Triton kernels, and which kernels there are."""

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from virtual_gpu import Device
from virtual_gpu.triton import VirtualDriver, driver_of

ARCHITECTURES = (80, 90)
"""An A100's and an H200's."""

KERNELS = Path(__file__).parents[2] / "memformer_kernels" / "backends" / "triton"


@contextmanager
def clean_gpu(architecture: int, order: int = 0) -> Iterator[VirtualDriver]:
    """A virtual GPU that Triton runs on inside; AssertionError where its checks found anything."""
    with driver_of(Device(capability=architecture, order=order)) as driver:
        yield driver
        assert driver.device.take_reports() == []


def kernel_names() -> set[str]:
    """file.function of all Triton kernels: functions whose names end so."""
    return {
        f"{path.stem}.{node.name}"
        for path in KERNELS.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
    }

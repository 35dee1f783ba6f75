"""What Triton compiles for tensor cores, run: fragments, tiles, descriptors and swizzles that others chose."""

import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from virtual_gpu import Device, Module

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The compiled kernels, made in a process of its own, since this one interprets kernels."""
    folder = tmp_path_factory.mktemp("products")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(folder / "cache")
    command = [sys.executable, "-m", "tests.virtual_gpu.compile_products", str(folder / "products.json")]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    cases: list[dict[str, Any]] = json.loads((folder / "products.json").read_text())
    return cases


def aligned(values: torch.Tensor) -> torch.Tensor:
    """A copy that starts at a multiple of 128 bytes."""
    nbytes = values.numel() * values.element_size()
    room = torch.zeros(nbytes + 128, dtype=torch.uint8)
    start = -room.data_ptr() % 128
    return room[start : start + nbytes].view(values.dtype).view(values.shape).copy_(values)


def run(case: dict[str, Any], a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    kernel = Module.of(case["ptx"]).kernels["product"]
    a, b = aligned(a), aligned(b.T.contiguous() if case["transposed"] else b)
    kind = torch.float64 if case["kind"] == "fp64" else torch.float32
    c = aligned(torch.zeros(a.shape[0], case["sizes"][1], dtype=kind))
    device = Device(case["architecture"])
    for tensor, name in ((a, "a"), (b, "b"), (c, "c")):
        nbytes = tensor.numel() * tensor.element_size()
        device.memory.register(tensor.data_ptr(), nbytes, name, initialised=name != "c", writable=name == "c")
    arguments = struct.pack("<QQQ", a.data_ptr(), b.data_ptr(), c.data_ptr()).ljust(kernel.parameter_bytes, b"\0")
    launch = device.launch(kernel, 1, case["threads"], arguments, shared=case["shared"])
    assert not device.take_reports()
    assert launch.counters.tensor_operations
    return c.double()


def test_products_of_whole_numbers_are_exact(products: list[dict[str, Any]]) -> None:
    draw = torch.Generator().manual_seed(0)
    for case in products:
        m, n, k = case["sizes"]
        a = torch.randint(-3, 4, (m, k), generator=draw).to(TYPES[case["kind"]])
        b = torch.randint(-3, 4, (k, n), generator=draw).to(TYPES[case["kind"]])
        assert torch.equal(run(case, a, b), a.double() @ b.double()), {**case, "ptx": ""}


def test_errors_of_products(products: list[dict[str, Any]]) -> None:
    bounds = {"fp16": 2.0**-20, "bf16": 2.0**-20, "fp32": 2.0**-9, "fp64": 2.0**-48}
    draw = torch.Generator().manual_seed(1)
    for case in products:
        m, n, k = case["sizes"]
        a, b = (torch.randn(size, generator=draw).to(TYPES[case["kind"]]) for size in ((m, k), (k, n)))
        error = (run(case, a, b) - a.double() @ b.double()).abs()
        sizes = a.double().abs() @ b.double().abs()
        assert (error <= bounds[case["kind"]] * sizes).all(), {**case, "ptx": ""}


def test_the_instructions_are_those_of_the_architectures(products: list[dict[str, Any]]) -> None:
    used: dict[int, set[str]] = {80: set(), 90: set()}
    for case in products:
        found = re.findall(
            r"((?:wg)?mma|ldmatrix|stmatrix)\.(?:mma_async\.)?sync\.aligned\.(\w+)\.(?:row\.col\.)?([\w.]+)",
            case["ptx"],
        )
        used[case["architecture"]].update(".".join(parts) for parts in found)
    for wanted in (
        "mma.m16n8k16.f32.f16",
        "mma.m16n8k16.f32.bf16",
        "mma.m16n8k8.f32.tf32",
        "mma.m8n8k4.f64",
        "ldmatrix",
    ):
        assert any(name.startswith(wanted) for name in used[80]), (wanted, used[80])
    for wanted in ("wgmma.m64n32k16.f32.f16", "wgmma.m64n64k8.f32.tf32", "mma.m16n8k16.f64", "ldmatrix"):
        assert any(name.startswith(wanted) for name in used[90]), (wanted, used[90])

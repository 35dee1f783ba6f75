"""Kernels broken on purpose, in Triton's source or in the PTX made of it: each fault is found by its check.

The calls are those that are clean with the kernels as they are.
"""

import importlib.util
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
import torch
from torch import Tensor

from memformer_kernels import memformer_loss, memformer_predict, register_update
from memformer_kernels.backends.triton import columns, feature_gram, gram, solve, solve_backward
from memformer_kernels.backends.triton import register_update as updates
from memformer_kernels.torch_ops import ops
from tests.virtual_gpu.faults import Fault, listed
from virtual_gpu import Device, Module
from virtual_gpu.triton import driver_of

pytestmark = pytest.mark.compiled


def _found(call: Callable[[], object], architecture: int = 90) -> set[str]:
    """The checks that report anything of a call."""
    with driver_of(Device(capability=architecture)) as driver:
        call()
        return {report.check for report in driver.device.take_reports()}


def _edited(module: ModuleType, folder: Path, edits: dict[str, str]) -> ModuleType:
    """A module made from another's source, in which every key stands once and is replaced."""
    assert module.__file__ is not None
    text = Path(module.__file__).read_text(encoding="utf-8")
    for right, wrong in edits.items():
        assert text.count(right) == 1, right
        text = text.replace(right, wrong)
    file = folder / f"{module.__name__.rsplit('.', 1)[-1]}.py"
    file.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"broken_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@contextmanager
def _edited_ptx(edit: Callable[[str], str]) -> Iterator[set[str]]:
    """What is compiled from now on is edited before it is loaded; kernels loaded before are loaded again.

    Gives the names of the kernels whose text is another one then.
    """
    read, loaded = Module.of, set[str]()

    def changed(text: str) -> Module:
        edited = edit(text)
        module = read(edited)
        if edited != text:
            loaded.update(module.kernels)
        return module

    kernels = gram.across_kernel, feature_gram.feature_gram_kernel, solve_backward.solve_backward_kernel
    for kernel in kernels:
        kernel.device_caches.clear()
    with mock.patch.object(Module, "of", changed):
        yield loaded
    for kernel in kernels:
        kernel.device_caches.clear()


def _update() -> Tensor:
    z, register = (torch.ones(5, 33) for _ in range(2))
    return register_update(z, [register], torch.ones(1, 33), backend="triton")


def _columns() -> Tensor:
    z, q = torch.ones(3, 9, 7), torch.full((2, 1, 6, 6), 0.01)
    return memformer_predict(z, q, context=7, backend="triton", algorithm="token")


def _solve(width: int = 6) -> Tensor:
    z = torch.linspace(-1, 1, 3 * 21 * width).cos().view(3, 21, width)
    q = torch.linspace(0, 0.1, 2 * (width - 1) ** 2).sin().view(2, 1, width - 1, width - 1)
    return memformer_predict(z, q, context=19, backend="triton", algorithm="gram")


def _wide_loss() -> Tensor:
    z, q = torch.full((2, 70, 40), 0.1), torch.full((1, 1, 39, 39), 0.01, requires_grad=True)
    loss = memformer_loss(z, torch.ones(2, 1), q, backend="triton", algorithm="gram")
    return torch.autograd.grad(loss, q)[0]


def _gram() -> Tensor:
    return ops.context_gram(torch.ones(2, 100, 24), None, 90, "triton")


def _wide_gram() -> Tensor:
    return ops.context_gram(torch.ones(2, 100, 40), None, 90, "triton")


CALLS: dict[str, tuple[Callable[[], Tensor], int]] = {
    "update": (_update, 90),
    "columns": (_columns, 80),
    "solve": (_solve, 90),
    "loss, 40 wide": (_wide_loss, 90),
    "gram on an A100": (_gram, 80),
    "gram, 40 wide": (_wide_gram, 90),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_calls_are_clean_as_they_are(name: str) -> None:
    assert _found(*CALLS[name]) == set()


UPDATES = {
    "a load's mask dropped": (
        "total = tl.load(z + tile.o_entry, mask=tile.m_entry, other=0.0)",
        "total = tl.load(z + tile.o_entry)",
        "out-of-bounds",
    ),
    "a store's mask dropped": (
        "tl.store(out + tile.o_entry, total, mask=tile.m_entry)",
        "tl.store(out + tile.o_entry, total)",
        "out-of-bounds",
    ),
    "a tail of one row too many": (
        "return Tile(o_entry, (i_row < sizes.rows) &",
        "return Tile(o_entry, (i_row <= sizes.rows) &",
        "out-of-bounds",
    ),
    "a result stored in another dtype": (
        "tl.store(out + tile.o_entry, total, mask=tile.m_entry)",
        "tl.store(out.to(tl.pointer_type(tl.float64)) + tile.o_entry, total.to(tl.float64), mask=tile.m_entry)",
        "out-of-bounds",
    ),
    "a coefficient's pointer one byte off": (
        "gamma + j * tl.cast(sizes.middle, tl.int64) + tile.o_weight",
        "(gamma.to(tl.pointer_type(tl.int8)) + 1).to(gamma.dtype) + tile.o_weight",
        "misaligned",
    ),
}


@pytest.mark.parametrize("fault", UPDATES)
def test_faults_of_an_update(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong, check = UPDATES[fault]
    text = Path(updates.__file__).read_text(encoding="utf-8")
    forward, _ = text.split("\ndef update_backward_kernel", 1)
    assert forward.count(right) == 1
    broken = _edited(updates, tmp_path, {forward: forward.replace(right, wrong)})
    monkeypatch.setattr(updates, "update_kernel", broken.update_kernel)
    assert check in _found(_update)


OFFSETS = Fault("offsets of tasks in 32 bits", "columns_kernel", 80, "out-of-bounds")
FUSED = Fault("a product fused into the sum of another lane", "solve_kernel", 90, "race-shared")


def test_offsets_of_tasks_in_32_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks that lie 2^30 numbers apart: the third begins past what 32 bits count."""
    edits = {
        "    z_strides = wide(strides)\n    lane = tl.arange(0, C.TASKS)[:, None]\n    memory = scratch + tl.cast("
        "tl.program_id(0), tl.int64) * scratch_size\n": (
            "    z_strides = strides\n    lane = tl.arange(0, C.TASKS)[:, None]\n    memory = scratch + tl.cast("
            "tl.program_id(0), tl.int64) * scratch_size\n"
        ),
        "        i_task = tl.cast(block, tl.int64) * C.TASKS + lane\n": "        i_task = block * C.TASKS + lane\n",
    }
    apart, tasks, tokens, width = 2**30, 3, 9, 7
    reserve_nothing = 0x4000
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | reserve_nothing
    room = torch.frombuffer(mmap.mmap(-1, 4 * tasks * apart, flags=flags), dtype=torch.float32)
    z = room.as_strided((tasks, tokens, width), (apart, width, 1))
    q = torch.full((2, 1, 6, 6), 0.01)

    def call() -> Tensor:
        return memformer_predict(z, q, backend="triton", algorithm="token")

    assert _found(call, OFFSETS.architecture) == set()
    monkeypatch.setattr(columns, "columns_kernel", _edited(columns, tmp_path, edits).columns_kernel)
    assert OFFSETS.check in _found(call, OFFSETS.architecture)


def test_a_product_fused_into_the_sum_of_another_lane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes that hold one sum in other bits write it to one place, which warps share."""
    edits = {"inner(tokens, state[:, None, :], 2)": "tl.sum(tokens * state[:, None, :], 2)"}
    monkeypatch.setattr(solve, "solve_kernel", _edited(solve, tmp_path, edits).solve_kernel)
    assert FUSED.check in _found(lambda: _solve(12), FUSED.architecture)


def test_a_value_that_nothing_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer's tokens stay in scratch as they were allocated, and are predicted from: the result holds no value."""
    edits = {"    tl.store(rows.p_row + (layer + 1) * own.slot, s, mask=rows.m_row)\n": ""}
    with driver_of(Device(capability=80)) as driver:
        assert driver.memory.written(_columns())
        monkeypatch.setattr(columns, "columns_kernel", _edited(columns, tmp_path, edits).columns_kernel)
        assert not driver.memory.written(_columns())


PTX = {
    "waits for copies dropped": ("cp.async.wait_group", "across_kernel", "gram on an A100", "copy-not-awaited"),
    "barriers in shared memory dropped": ("bar.sync", "across_kernel", "gram on an A100", "race-shared"),
    "barriers in global memory dropped": ("bar.sync", "solve_backward_kernel", "loss, 40 wide", "race-global"),
    "waits for products dropped": ("wgmma.wait_group", "feature_gram_kernel", "gram, 40 wide", "pending-register"),
}


@pytest.mark.parametrize("fault", PTX)
def test_faults_in_compiled_code(fault: str) -> None:
    instruction, kernel, name, check = PTX[fault]

    def without(text: str) -> str:
        if f".entry {kernel}(" not in text:
            return text
        return "\n".join(line for line in text.splitlines() if not line.strip().startswith(instruction))

    with _edited_ptx(without) as loaded:
        assert check in _found(*CALLS[name])
        assert loaded == {kernel}


def test_the_page_lists_these_faults() -> None:
    updated = [Fault(what, "update_kernel", 90, check) for what, (_, _, check) in UPDATES.items()]
    compiled = [Fault(what, kernel, CALLS[name][1], check) for what, (_, kernel, name, check) in PTX.items()]
    assert listed("Triton") == [*updated, OFFSETS, FUSED, *compiled]

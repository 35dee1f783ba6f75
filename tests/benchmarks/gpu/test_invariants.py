"""The rules on compiled kernels find what they are for, in what Triton compiles of kernels that break them."""

import pytest

pytest.importorskip("triton", reason="triton is not installed: pip install 'memformer_kernels[triton]'")

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.gpu.invariants import broken, products

pytestmark = pytest.mark.compiled


@triton.jit  # type: ignore[untyped-decorator]
def carrying_kernel(a, b, out, steps, TURNED: tl.constexpr, OUTSIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sum of products a_i b_i: in the product itself or OUTSIDE of it, and TURNED and multiplied again.

    Three products for one add to what they are given outside of themselves, whatever the source says.
    """
    i = tl.arange(0, 64)[:, None] * 64 + tl.arange(0, 64)[None, :]
    total = tl.zeros((64, 64), tl.float32)
    for step in range(steps):
        left, right = tl.load(a + step * 4096 + i), tl.load(b + step * 4096 + i)
        if OUTSIDE:
            made = tl.reshape(tl.dot(left, right, input_precision="tf32x3"), (1, 64, 64))
            total = tl.reshape(tl.reshape(total, (1, 64, 64)) + made, (64, 64))
        else:
            total = tl.dot(left, right, total, input_precision="tf32")
    if TURNED:
        total = tl.dot(tl.trans(total), tl.load(a + i), input_precision="tf32x3")
    tl.store(out + i, total)


def _compiled(architecture: int, turned: bool, outside: bool, **options: object) -> tuple[str, str]:
    """As Triton's GPU dialect and as PTX."""
    types = {"a": "*fp32", "b": "*fp32", "out": "*fp32", "steps": "i32", "TURNED": "constexpr", "OUTSIDE": "constexpr"}
    source = ASTSource(carrying_kernel, types, {(4,): turned, (5,): outside})
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    return made.asm["ttgir"], made.asm["ptx"]


def test_what_a_product_waits_for_with_its_sum_is_no_part_of_it() -> None:
    """An operand may come from what a loop carries, as a load that runs ahead does; the sum may not."""
    text = """
    %end:2 = scf.for %i = %a to %b step %c iter_args(%ahead = %first, %sum = %zero) -> (f32, f32) : i32 {
      %operand = ttg.local_alloc %ahead : f32
      %made = ttng.warp_group_dot %left, %operand, %zero : f32
      %waited:2 = ttng.warp_group_dot_wait %made, %operand : f32
      %next = ttng.warp_group_dot %left, %operand, BEGIN : f32
    """
    assert broken(text.replace("BEGIN", "%waited#0"), "") == []
    assert broken(text.replace("BEGIN", "%waited#1"), "") == ["%next adds to %ahead, which a loop carries"]
    assert broken(text.replace("BEGIN", "%sum"), "") == ["%next adds to %sum, which a loop carries"]


def test_names_of_a_branch_or_of_a_sum_along_an_axis_are_other_ones_elsewhere() -> None:
    text = """
    %end:2 = scf.for %i = %a to %b step %c iter_args(%sum = %zero, %ahead = %first) -> (f32, f32) : i32 {
      %loaded = scf.if %left -> (f32) {
        %some = tt.load %pointers : f32
        scf.yield %some : f32
      } else {
        %some = tt.broadcast %left : f32
        %part = tt.load %pointers, %some : f32
        scf.yield %part : f32
      }
      %made = ttng.warp_group_dot %ahead, %ahead, %zero : f32
      %next = arith.addf %sum, %made : f32
      %along = "tt.reduce"(%loaded) <{axis = 0 : i32}> ({
      ^bb0(%sum: f32, %other: f32):
        %left = arith.addf %sum, %other : f32
        tt.reduce.return %left : f32
      }) : (f32) -> f32
      %turned = tt.trans TURNED : f32
      scf.yield %next, %turned : f32, f32
    }
    """
    assert broken(text.replace("TURNED", "%loaded"), "") == []
    assert broken(text.replace("TURNED", "%next"), "") == ["%made multiplies %made, a product turned in registers"]


@pytest.mark.parametrize("architecture", [80, 90])
def test_a_sum_that_a_loop_carries_into_a_product_is_found(architecture: int) -> None:
    ttgir, ptx = _compiled(architecture, turned=False, outside=False)
    assert products(ttgir) == 1
    assert any("which a loop carries" in fault for fault in broken(ttgir, ptx))
    assert broken(*_compiled(architecture, turned=False, outside=True)) == []


@pytest.mark.parametrize("architecture", [80, 90])
def test_a_product_of_a_sum_that_is_transposed_in_registers_is_found(architecture: int) -> None:
    (fault,) = broken(*_compiled(architecture, turned=True, outside=True))
    assert fault.endswith("a product turned in registers")


def test_products_of_tcgen05_are_found_and_code_for_ampere_has_none() -> None:
    assert "a product is made by tcgen05" in broken(*_compiled(100, turned=False, outside=True))
    ttgir, ptx = _compiled(100, turned=False, outside=True, arch="sm80")
    assert broken(ttgir, ptx) == []
    assert products(ttgir) == 3
    assert ".target sm_100a" in ptx

"""What must hold of every kernel's text, since no machine without a GPU could see it go wrong."""

import ast
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import memformer_kernels

FOLDER = Path(memformer_kernels.__file__).parent / "backends" / "triton"
FILES = sorted(FOLDER.glob("*.py"))


TRANSPOSES = {"trans", "permute", "T", "mT", "transpose", "swapaxes"}
PRODUCTS = {"dot", "dot_scaled"}


def _calls(path: Path, name: str) -> list[ast.Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [x for x in ast.walk(tree) if isinstance(x, ast.Call) and ast.unparse(x.func) == name]


TURNED = {
    "by_feature",
    "by_token",
    "add_products",
    "store_sums",
    "with_mirrored",
    "along_rows",
    "times_own",
    "times_quads",
}
"""Functions that turn tiles around: the first three what was loaded, the others what no product of tiles is made of."""

MULTIPLYING = {"multiply", "product", "chunked_product", "across"}
"""Functions that return a product of tiles."""


def _device_words(source: str, without: Iterable[str] = ()) -> list[str]:
    """Every name and attribute that functions compiled by Triton use, by whatever it is reached."""
    functions = [function for function in _compiled_functions(source) if function.name not in without]
    nodes = [node for function in functions for statement in function.body for node in ast.walk(statement)]
    names = [node.id for node in nodes if isinstance(node, ast.Name)]
    return names + [node.attr for node in nodes if isinstance(node, ast.Attribute)]


def _aliases(source: str) -> list[str]:
    """What a file imports of Triton's language under a name of its own, or gives another name."""
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("triton"):
            found += [alias.name for alias in node.names]
        if isinstance(node, ast.Import):
            found += [x.name for x in node.names if x.name.startswith("triton.language") and x.asname != "tl"]
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute):
            found += [ast.unparse(node.value)] if node.value.attr in TRANSPOSES | PRODUCTS else []
    return found


MOST_LINES, MOST_PARAMETERS = 120, 20
"""Of a function compiled by Triton, so that it can be read."""


def _compiled_functions(source: str) -> list[ast.FunctionDef]:
    functions = [x for x in ast.walk(ast.parse(source)) if isinstance(x, ast.FunctionDef)]
    return [x for x in functions if any("jit" in ast.unparse(y) for y in x.decorator_list)]


def _too_large(source: str) -> list[str]:
    found = []
    for function in _compiled_functions(source):
        assert function.end_lineno is not None
        lines = function.end_lineno - function.lineno + 1
        parameters = len([*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs])
        if lines > MOST_LINES or parameters > MOST_PARAMETERS:
            found.append(function.name)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_kernels_can_be_read(path: Path) -> None:
    assert _too_large(path.read_text(encoding="utf-8")) == []


def test_a_large_kernel_would_be_found() -> None:
    names = ", ".join(f"x{i}" for i in range(MOST_PARAMETERS))
    body = "    x = 0\n" * (MOST_LINES - 1)
    assert _too_large(f"@triton.jit\ndef f({names}):\n{body}") == []
    assert _too_large(f"@triton.jit\ndef f({names}):\n{body}    x = 0\n") == ["f"]
    assert _too_large(f"@triton.jit\ndef f({names}, C):\n    x = 0\n") == ["f"]
    assert _too_large(f"def f({names}, C):\n{body}    x = 0\n") == []


def test_there_are_kernels() -> None:
    assert len(FILES) > 5
    made = {path.stem: len(_calls(path, "tl.dot")) for path in FILES if _calls(path, "tl.dot")}
    assert made == {"tiles": 1, "feature_gram": 1}
    words = [word for path in FILES for word in _device_words(path.read_text(encoding="utf-8"))]
    assert sum(word in PRODUCTS for word in words) == sum(made.values())


def _summed_products(source: str) -> list[str]:
    """Sums whose lanes would add their own products to others' rounded ones: of a product, or of a name that is one."""
    found = []
    for function in (x for x in ast.walk(ast.parse(source)) if isinstance(x, ast.FunctionDef)):
        nodes = list(ast.walk(function))
        assigned = [(ast.unparse(x.targets[0]), x.value) for x in nodes if isinstance(x, ast.Assign)]
        products = {name for name, value in assigned if _is_product(value)}
        for call in (x for x in nodes if isinstance(x, ast.Call) and ast.unparse(x.func) == "tl.sum"):
            if _is_product(call.args[0]) or ast.unparse(call.args[0]) in products:
                found.append(ast.unparse(call))
    return found


def _is_product(value: ast.expr) -> bool:
    return isinstance(value, ast.BinOp) and isinstance(value.op, ast.Mult)


def test_a_summed_product_would_be_found() -> None:
    assert _summed_products("def f(x, y):\n    z = x * y\n    return tl.sum(x, 0) + tl.sum(inner(x, y), 0)") == []
    assert _summed_products("def f(x, y):\n    return tl.sum(x * y, 0)") == ["tl.sum(x * y, 0)"]
    assert _summed_products("def f(x, y):\n    z = x * y\n    return tl.sum(z, 0)") == ["tl.sum(z, 0)"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_products_are_summed_by_one_helper(path: Path) -> None:
    """`tiles.inner`, whose sums have the same bits in every lane; what compiled code shows is in compile_calls.py."""
    assert _summed_products(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_product_says_its_precision(path: Path) -> None:
    for call in _calls(path, "tl.dot"):
        assert "input_precision" in {keyword.arg for keyword in call.keywords}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_tile_is_transposed(path: Path) -> None:
    """`tl.dot(tl.trans(acc), ...)` of a computed accumulator is miscompiled for Hopper by Triton 3.4 to 3.7.0."""
    source = path.read_text(encoding="utf-8")
    assert TRANSPOSES.isdisjoint(_device_words(source, without=TURNED))
    assert _aliases(source) == []
    assert _turned_products(source) == []


def _turned_products(source: str) -> list[str]:
    """Where a tile that a product made is turned around and then multiplied, by names and calls of a function."""
    found = []
    for function in _compiled_functions(source):
        nodes = list(ast.walk(function))
        assigned = [(name.id, x) for x in nodes for name in _targets(x)]
        products = {name for name, x in assigned if _calls_of(x, MULTIPLYING)}
        mirrored = {name for name, x in assigned if _calls_of(x, {"with_mirrored"})}
        for call in _calls_of(function, {"by_feature", "by_token", "tl.trans"}):
            found += [ast.unparse(call) for x in call.args if products & _names(x) or _calls_of(x, MULTIPLYING)]
        for call in _calls_of(function, {"multiply"}):
            found += [ast.unparse(call) for x in call.args if mirrored & _names(x) or _calls_of(x, {"with_mirrored"})]
    return found


def _targets(node: ast.AST) -> list[ast.Name]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
    return [x for target in targets for x in ast.walk(target) if isinstance(x, ast.Name)]


def _calls_of(node: ast.AST, names: set[str]) -> list[ast.Call]:
    return [x for x in ast.walk(node) if isinstance(x, ast.Call) and ast.unparse(x.func) in names]


def _names(node: ast.AST) -> set[str]:
    return {x.id for x in ast.walk(node) if isinstance(x, ast.Name)}


@pytest.mark.parametrize(
    "body",
    [
        "y = multiply(x, x)\n    z = multiply(by_feature(y, C), x)",
        "y += multiply(x, x)\n    z = by_token(y + x, C)",
        "z = by_feature(multiply(x, x), C)",
        "y = with_mirrored(x)\n    z = multiply(x, y * 2)",
        "y = across(x, x, None, C)\n    z = tl.trans(y)",
    ],
)
def test_a_turned_product_would_be_found(body: str) -> None:
    assert _turned_products(f"@triton.jit\ndef kernel(x, C):\n    {body}\n") != []
    assert _turned_products("@triton.jit\ndef f(x, C):\n    y = multiply(by_feature(x, C), x)\n    z = g(y)\n") == []


@pytest.mark.parametrize(
    "body",
    [
        "tl.trans(acc)",
        "acc.trans()",
        "acc.T",
        "tl.permute(acc, (1, 0))",
        "acc.permute(1, 0)",
        "triton.language.trans(x)",
    ],
)
def test_a_transposed_tile_would_be_found(body: str) -> None:
    source = f"@triton.jit(do_not_specialize=['n'])\ndef kernel(acc, n):\n    return tl.dot({body}, acc)\n"
    assert not TRANSPOSES.isdisjoint(_device_words(source))


@pytest.mark.parametrize(
    "line",
    [
        "from triton.language import trans as turned",
        "import triton.language as language",
        "turned = tl.trans",
        "d = tl.dot",
    ],
)
def test_an_alias_would_be_found(line: str) -> None:
    assert _aliases(line) != []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_sums_have_a_fixed_order(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "atomic_" not in text
    assert "autotune" not in text


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_tasks_lie_on_the_first_axis_of_the_grid(path: Path) -> None:
    """The others end at 65,535."""
    for name in ("tl.program_id", "tl.num_programs"):
        for call in _calls(path, name):
            assert ast.unparse(call.args[0]) == "0"


def _read_as_tuples(source: str) -> list[str]:
    """Parameters that a kernel is not to be compiled for and that it takes parts of, or does not have."""
    found = []
    for function in _compiled_functions(source):
        keywords = [x for y in function.decorator_list if isinstance(y, ast.Call) for x in y.keywords]
        named = [name for x in keywords if x.arg == "do_not_specialize" for name in ast.literal_eval(x.value)]
        parts = [x.value for x in ast.walk(function) if isinstance(x, ast.Attribute | ast.Subscript)]
        taken = {x.id for x in parts if isinstance(x, ast.Name)}
        found += [name for name in named if name in taken or name not in {x.arg for x in function.args.args}]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_kernels_are_not_compiled_for_are_numbers(path: Path) -> None:
    """Triton compiles for what it finds in a tuple, whatever it is told of the tuple."""
    assert _read_as_tuples(path.read_text(encoding="utf-8")) == []


def test_a_tuple_that_kernels_are_not_compiled_for_would_be_found() -> None:
    kernel = "@triton.jit(do_not_specialize=['sizes'])\ndef kernel({}):\n    x = {}\n"
    assert _read_as_tuples(kernel.format("sizes", "sizes + 1")) == []
    for parameters, body in (("sizes", "sizes.batch"), ("sizes", "sizes[0]"), ("batch", "batch")):
        assert _read_as_tuples(kernel.format(parameters, body)) == ["sizes"]


FLOATS = (torch.float32, torch.float64)


def test_configurations_follow_rules() -> None:
    from memformer_kernels.backends.triton import rules
    from memformer_kernels.backends.triton.sums import TASKS_A_BLOCK
    from memformer_kernels.calls.limits import TILE_WIDTH

    for width in range(1, TILE_WIDTH + 1):
        for dtype, matrices, architecture in product(FLOATS, (False, True), (80, 90, 100)):
            chosen = rules.config(width, 21, dtype, architecture, matrices)
            # The order of sums over tasks is the same on every GPU.
            other = rules.config(width, 21, dtype, 90, matrices)
            assert (chosen.lanes, chosen.tasks, chosen.warps) == (other.lanes, other.tasks, other.warps)
            assert TASKS_A_BLOCK % chosen.tasks == chosen.lanes % chosen.tasks == 0
            assert chosen.block >= width
            if chosen.tasks == 1:
                assert min(chosen.block, chosen.rows, chosen.chunk) >= rules.DOT_MINIMUM
            else:
                assert chosen.tasks * chosen.rows * chosen.block * chosen.chunk <= 2**14
        vectors = [rules.vectors_config(width, 21, *kind) for kind in product(FLOATS, (80, 90, 100), (False, True))]
        assert all(chosen.lanes % chosen.tasks == 0 for chosen in vectors)
        assert {chosen.lanes for chosen in vectors} == {rules.config(width, 21, torch.float32, 90).lanes}
    assert rules.gram_splits(1, 100_000) >= 100_000 / rules.TOKENS_A_SPLIT
    assert rules.gram_splits(10_000, 21) == 1


def test_plain_tf32_only_when_torch_allows_it() -> None:
    from memformer_kernels.backends.triton import rules

    kept = torch.get_float32_matmul_precision()
    try:
        for allowed, expected in (("highest", "tf32x3"), ("high", "tf32")):
            torch.set_float32_matmul_precision(allowed)
            assert rules.precision(torch.float32) == expected
            assert rules.precision(torch.float64) == "ieee"
    finally:
        torch.set_float32_matmul_precision(kept)


def test_tensors_on_the_cpu_need_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    from memformer_kernels.backends.triton import launch

    launch.check_tensor(torch.zeros(1))
    monkeypatch.setattr(launch, "interpreted", lambda: False)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        launch.check_tensor(torch.zeros(1))


def test_equal_constants_of_two_kernels_stay_apart() -> None:
    """Tuples of two classes are equal where their numbers are."""
    from memformer_kernels.backends.triton import launch

    class One(NamedTuple):
        WIDTH: int

    class Other(NamedTuple):
        BLOCK: int

    made = [launch._compiled_in(kind, kind(4)) for kind in (One, Other)]
    assert [type(constants) for constants in made] == [One, Other]

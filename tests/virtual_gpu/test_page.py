"""docs/virtual-gpu.md: its example works when pasted, and it names the checks that there are."""

import re
from pathlib import Path

from virtual_gpu import ALL_CHECKS

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "virtual-gpu.md").read_text(encoding="utf-8")


def example() -> str:
    lines = [line for line in PAGE.split("## How it works")[0].splitlines() if line.startswith("    ") or not line]
    return "\n".join(line[4:] for line in lines)


def test_the_example_works() -> None:
    exec(compile(example(), "virtual-gpu.md", "exec"), {})


def test_one_more_thread_is_out_of_bounds() -> None:
    names: dict[str, object] = {}
    longer = example().replace("b.ctypes.data, 20))", "b.ctypes.data, 21))")
    longer = longer.replace("assert device.take_reports() == [] and b[3] == 4", "found = device.take_reports()")
    exec(compile(longer, "virtual-gpu.md", "exec"), names)
    assert {report.check for report in names["found"]} == {"out-of-bounds"}  # type: ignore[attr-defined]


def test_every_check_is_in_the_table() -> None:
    rows = re.findall(r"^\| ([a-z, -]+) \|", PAGE, re.MULTILINE)
    named = {name for row in rows for name in row.split(", ")}
    assert named - {"check"} == set(ALL_CHECKS) - {"trap", "instruction-limit"}


def test_the_tests_that_the_page_names_are_there() -> None:
    cited = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)
    assert len(cited) > 10
    for file, test in cited:
        assert f"def {test}(" in (TESTS / file).read_text(encoding="utf-8"), test

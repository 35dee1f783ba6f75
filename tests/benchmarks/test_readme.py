"""The README's generated parts: every figure in them is one of a record."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import readme
from benchmarks.measure.dispatch import AUTO
from benchmarks.measure.workloads import W
from benchmarks.reports.record import write_reports
from tests.benchmarks.test_compare import report, timing


def rows(text: str) -> dict[str, list[str]]:
    """First cell -> the other cells, without markup, of every table in a text."""
    cells = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    return {row[0].strip(" *`"): [cell.strip() for cell in row[1:]] for row in cells}


def test_only_what_stands_between_marks_is_written() -> None:
    text = "before <!-- record: overhead -->\nold\n<!-- end --> after"
    made = readme.generate(text)
    assert made.startswith("before <!-- record: overhead -->\n| one task of workload W |")
    assert made.endswith("|\n<!-- end --> after")
    assert readme.generate(made) == made
    assert readme.generate("nothing") == "nothing"
    with pytest.raises(ValueError, match=r"expected one of speed, .*got 'sped'"):
        readme.generate("<!-- record: sped -->\n<!-- end -->")


def test_a_table_holds_every_provider_and_the_ratio_is_theirs() -> None:
    content = json.loads((readme.RESULTS / "cpu-w.json").read_text(encoding="utf-8"))
    medians = {
        t["provider"]: t["quantiles"]["median_ms"]
        for t in content["timings"]
        if t["quantiles"] and t["workload"]["batch"] == 100_000
    }
    made = readme.PARTS["speed"]()
    table = rows(made)
    assert table.keys() - {"provider"} >= medians.keys()
    for provider, ms in medians.items():
        assert float(table[provider][1].replace(",", "")) == pytest.approx(ms, rel=0.006)
    ours = min(ms for provider, ms in medians.items() if provider.startswith("memformer"))
    peer = min(ms for provider, ms in medians.items() if not provider.startswith("memformer"))
    assert f"{peer / ours:.1f} times" in made


def test_losses_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    write_reports(tmp_path / "dispatch-cpu.json", [report(timing("peer", 2.0), timing(AUTO, 4.0))])
    made = readme.PARTS["dispatch"]()
    assert rows(made)[W.name] == ["4", "2", "peer", "0.50"]
    assert re.search(r"On 0\s+of\s+them", made)
    write_reports(tmp_path / "dispatch-cpu.json", [report(timing("peer", 4.0), timing(AUTO, 2.0))])
    assert "Nowhere did we lose" in readme.PARTS["dispatch"]()

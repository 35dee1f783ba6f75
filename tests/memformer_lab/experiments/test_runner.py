from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import pytest
from typer.testing import CliRunner

from memformer_lab.cli import app
from memformer_lab.experiments import runner
from memformer_lab.experiments.runner import EXPERIMENTS, find
from memformer_lab.reports.protocol import FORMAT, Setting, read_outcome

CHOSEN = ["published", "learnability"]


class _Page(HTMLParser):
    """Checks that tags nest, and keeps what is linked and shown."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.links += [value for name in ("src", "href") if (value := values.get(name))]
        self.ids |= {value} if (value := values.get("id")) else set()
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experiments")
    outcomes = runner.run_experiments(CHOSEN, Setting("tiny"), folder)
    assert [one.experiment.name for one in outcomes] == CHOSEN
    return folder


def test_results_figures_and_report_are_written(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "published.json", "published-layouts.png", "learnability.json", "learnability-gap.png", "learnability-loss.png",
        "report.html", "README.md",
    }  # fmt: skip
    for path in folder.glob("*.png"):
        picture = matplotlib.image.imread(path)
        assert picture.shape[1] > 500
        assert picture[..., :3].std() > 0.05


def test_pictures_and_report_are_drawn_again_from_the_results(folder: Path) -> None:
    made = [path for path in folder.iterdir() if path.suffix in (".png", ".html")]
    before = {path.name: path.read_bytes() for path in made}
    for path in made:
        path.unlink()
    said: list[str] = []
    runner.run_experiments(CHOSEN, Setting("tiny"), folder, say=said.append)
    assert all("found in" in line for line in said)
    assert {path.name: path.read_bytes() for path in made} == before


def test_the_report_is_one_well_formed_page_that_needs_no_network(folder: Path) -> None:
    page = _Page()
    page.feed((folder / "report.html").read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    assert len(page.links) == 2 + 3
    for link in page.links:
        assert link.startswith("data:image/png;base64,") or link[1:] in page.ids
    for name in CHOSEN:
        experiment = find(name)
        for text in (experiment.title, experiment.claim, experiment.source, experiment.protocol):
            assert text in page.text
    assert "inconclusive at this scale" in page.text


def test_the_page_in_markdown_has_a_row_for_each(folder: Path) -> None:
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert "    memformer-lab reproduce --tiny --seed 0\n" in page
    assert "minutes of processor time on" in page
    for name in CHOSEN:
        outcome = read_outcome(folder, find(name), Setting("tiny"))
        assert outcome is not None
        rows = [line for line in page.splitlines() if f"]({name}.json)" in line]
        assert len(rows) == 1
        for text in (outcome.experiment.claim, outcome.verdict.label, outcome.experiment.find(outcome.results)):
            assert text in rows[0]
        for check in outcome.verdict.checks:
            assert check.passed is True or check.text in page


def test_the_json_holds_claim_verdict_and_rules(folder: Path) -> None:
    held = json.loads((folder / "learnability.json").read_text())
    assert held["format"] == FORMAT
    assert held["claim"] == find("learnability").claim
    assert {"label", "checks", "parts"} == held["verdict"].keys()
    assert all({"text", "passed", "essential", "part"} == check.keys() for check in held["verdict"]["checks"])


def test_a_stopped_run_goes_on_where_it_was(folder: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "published.json").unlink()
    said: list[str] = []
    runner.run_experiments(CHOSEN, Setting("tiny"), folder, say=said.append)
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert after["learnability.json"] == before["learnability.json"]
    assert after["published.json"] > before["published.json"]
    assert any("learnability: found" in line for line in said)
    assert any("published: running" in line for line in said)


def test_another_setting_or_a_broken_file_is_run_again(folder: Path, tmp_path: Path) -> None:
    experiment = find("published")
    assert read_outcome(folder, experiment, Setting("tiny")) is not None
    assert read_outcome(folder, experiment, Setting("tiny", seed=1)) is None
    assert read_outcome(folder, experiment, Setting("quick")) is None
    assert read_outcome(tmp_path, experiment, Setting("tiny")) is None
    whole = (folder / "published.json").read_text()
    for broken in (whole[:200], whole.replace('"layouts"', '"other"'), "[]"):
        (tmp_path / "published.json").write_text(broken)
        assert read_outcome(tmp_path, experiment, Setting("tiny")) is None


def test_results_of_other_code_are_run_again(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "published.json").read_text()
    sources = json.loads(whole)["versions"]["sources"]
    assert re.fullmatch("[0-9a-f]{12}", sources)
    (tmp_path / "published.json").write_text(whole.replace(sources, "0" * 12))
    assert read_outcome(tmp_path, find("published"), Setting("tiny")) is None
    (tmp_path / "published.json").write_text(whole)
    assert read_outcome(tmp_path, find("published"), Setting("tiny")) is not None


def test_results_of_other_code_are_judged_again_without_a_run(folder: Path, tmp_path: Path) -> None:
    plain = json.loads((folder / "published.json").read_text())
    plain["versions"]["sources"] = "0" * 12
    plain["verdict"]["label"] = "reproduced"
    (tmp_path / "published.json").write_text(json.dumps(plain))
    (outcome,) = runner.judge_again(["18"], Setting("tiny"), tmp_path)
    found = json.loads((tmp_path / "published.json").read_text())
    assert found["verdict"]["label"] == outcome.verdict.label == "inconclusive at this scale"
    assert {key: found[key] for key in ("versions", "results", "seconds")} == {
        key: plain[key] for key in ("versions", "results", "seconds")
    }
    assert (tmp_path / "report.html").exists()
    arguments = ["reproduce", "18", "12", "--tiny", "--judge", "--out", str(tmp_path)]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2
    assert "expected tiny results of seed 0 in learnability.json" in " ".join(refused.stderr.split())
    assert CliRunner().invoke(app, [*arguments[:2], *arguments[3:]]).exit_code == 0


def test_experiments_that_take_longest_begin_first(tmp_path: Path) -> None:
    said: list[str] = []
    names = sorted(CHOSEN, key=lambda name: find(name).minutes)
    runner.run_experiments(names, Setting("tiny"), tmp_path, say=said.append)
    begun = [line.split(":")[0] for line in said if line.endswith("running")]
    assert [find(name).minutes for name in begun] == sorted((find(name).minutes for name in CHOSEN), reverse=True)
    assert find(begun[0]).minutes > find(begun[-1]).minutes


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="scale must be one of tiny, quick, full, got 'huge'"):
        Setting("huge")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed must be at least 0"):
        Setting("tiny", -1)
    assert not set(Setting("tiny", 0).seeds) & set(Setting("tiny", 1).seeds)
    assert len(Setting("quick").seeds) == len(Setting("full").seeds) == 5


def test_the_command_lists_runs_and_refuses(tmp_path: Path) -> None:
    listed = CliRunner().invoke(app, ["reproduce", "--list"])
    assert listed.exit_code == 0
    assert [line.split()[0] for line in listed.output.splitlines()] == [str(one.number) for one in EXPERIMENTS]
    done = CliRunner().invoke(app, ["reproduce", "18", "--tiny", "--out", str(tmp_path), "--workers", "1"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "report.html").exists()
    assert re.search(r"\b([1-9]\d*) of \1\b", done.output), "all rules hold"
    for arguments, words in (
        (["magic"], "no experiment is called 'magic'"),
        (["--quick", "--full"], "cannot go together"),
        (["--judge", "--anew"], "expected one of them"),
    ):
        refused = CliRunner().invoke(app, ["reproduce", *arguments, "--out", str(tmp_path / "no")])
        assert refused.exit_code == 2
        assert words in refused.stderr
        assert not (tmp_path / "no").exists()

"""docs/frameworks.md: its code runs where what it needs is installed."""

import json
import re
from pathlib import Path

import pytest

from tests.pages import examples, run

PAGE = "docs/frameworks.md"
LOOP, LIGHTNING, HUB = examples(PAGE)


def test_the_plain_loop_learns(tmp_path: Path) -> None:
    # A model that learnt nothing has the response's variance, d = 5.
    assert float(run(LOOP, tmp_path).split()[-1]) < 0.5


def test_lightning_trains_a_memformer(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    assert float(re.findall(r"loss of the last step: (\S+)", run(LIGHTNING, tmp_path))[0]) < 2.5


def test_the_mixin_saves_and_loads_a_memformer_without_pickle(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    pytest.importorskip("safetensors")
    assert "layers=4, heads=1, rule='cgd'" in run(HUB, tmp_path)
    saved = tmp_path / "my-memformer"
    assert {path.name for path in saved.iterdir()} <= {"config.json", "model.safetensors", "README.md"}
    config = json.loads((saved / "config.json").read_text())
    assert (config["d"], config["layers"], config["rule"]) == (5, 4, "cgd")

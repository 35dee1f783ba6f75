"""docs/layer.md: its code runs as pasted, and what it names exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import memformer_kernels
from memformer_kernels import nn

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "layer.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_run_as_pasted(example: str) -> None:
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "torch.Size" in done.stdout


def test_what_is_named_exists() -> None:
    assert len(EXAMPLES) == 2
    for name in re.findall(r"`nn\.(\w+)`", PAGE):
        assert hasattr(nn, name), name
    for name in ("linear_attention", "register_update"):
        assert f"`{name}`" in PAGE
        assert hasattr(memformer_kernels, name)
    assert set(re.findall(r'^\| `"(\w+)"` \|', PAGE, re.MULTILINE)) == set(nn.MEMORIES)
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", PAGE):
        assert (ROOT / "docs" / picture).is_file(), picture
    for module in re.findall(r"python -m (examples\.\w+)", PAGE):
        assert (ROOT / Path(*module.split("."))).with_suffix(".py").is_file()

"""The site of `make docs`: what its pages are made of, and that it builds without a warning."""

import importlib.util
import inspect
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import memformer_kernels
import memformer_lab
import virtual_gpu
from docs import hooks
from memformer_kernels import nn
from tests.pages import PAGES, ROOT, text_of

CONFIG = text_of("mkdocs.yml")
needs_mkdocs = pytest.mark.skipif(
    importlib.util.find_spec("mkdocstrings") is None, reason="the site needs the extra `docs`: make docs"
)
IN_SITE = {"index.md", "lab.md", "lab.png", "notebooks/train.ipynb", "notebooks/train.md", "CONTRIBUTING.md"}


@pytest.mark.parametrize(
    ("path", "link", "moved"),
    [
        ("docs/index.md", "[a](lab.md#rules)", "[a](lab.md#rules)"),
        ("docs/index.md", "![a](lab.png)", "![a](lab.png)"),
        ("docs/index.md", "[a](notebooks/train.ipynb)", "[a](notebooks/train.md)"),
        ("docs/notebooks/train.md", "[a](train.ipynb)", "[a](train.ipynb)"),
        ("docs/notebooks/train.md", "[a](../lab.md)", "[a](../lab.md)"),
        ("docs/lab.md", "[a](../CONTRIBUTING.md)", "[a](CONTRIBUTING.md)"),
        ("CONTRIBUTING.md", "[a](docs/lab.md#rules)", "[a](lab.md#rules)"),
        ("CONTRIBUTING.md", "[`f`](memformer_kernels/functional.py)", "`f`"),
        ("CONTRIBUTING.md", "[a](https://arxiv.org/abs/1)", "[a](https://arxiv.org/abs/1)"),
    ],
)
def test_links_of_the_tree_become_links_of_the_site(path: str, link: str, moved: str) -> None:
    assert hooks.moved_links(f"See {link}.", path, IN_SITE) == f"See {moved}."


def test_a_notebook_becomes_a_page() -> None:
    outputs = [
        {"output_type": "stream", "text": ["4\n"]},
        {"output_type": "display_data", "metadata": {}, "data": {"image/png": "iVBO\n"}},
    ]
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "Text."]},
        {"cell_type": "code", "source": ["print(2 + 2)"], "outputs": outputs},
    ]
    page = hooks.page_of({"cells": cells}, "a.ipynb")
    assert page.startswith("# Title\nText.\n\n[a.ipynb](a.ipynb)")
    assert "```python\nprint(2 + 2)\n```" in page
    assert '``` { .text .output title="output" }\n4\n```' in page
    assert "(data:image/png;base64,iVBO)" in page


def test_every_page_has_its_place_in_the_menu() -> None:
    named = set(re.findall(r"^ +- .*?([\w/-]+\.md)$", CONFIG, re.MULTILINE))
    docs = ROOT / "docs"
    pages = {str(path.relative_to(docs)) for path in docs.rglob("*.md")} | set(hooks.MOVED)
    pages |= {str(path.relative_to(docs).with_suffix(".md")) for path in docs.rglob("*.ipynb")}
    assert named == pages
    assert {page for page in PAGES if "/" not in page} - {"README.md"} <= named


def test_every_picture_is_in_the_gallery() -> None:
    shown = set(re.findall(r"\]\(([\w-]+\.png)\)", text_of("docs/gallery.md")))
    assert shown == {path.name for path in (ROOT / "docs").glob("*.png")}


def test_nothing_is_fetched() -> None:
    assert "font: false" in CONFIG
    plugins = re.findall(r"^  - (\w+):?$", CONFIG.split("\nplugins:\n")[1].split("\n\n")[0], re.MULTILINE)
    assert plugins == ["search", "mkdocstrings"]


def test_docstrings_are_in_the_words_of_the_tools() -> None:
    pytest.importorskip("griffe")
    from docs.reference import read_by_tools

    said = "A.\n\nArgs:\n    a, b: two.\n        Both.\n    c: one: yes, no: no.\n\nExample:\n    >>> f()\n"
    assert read_by_tools(said) == (
        "A.\n\nArgs:\n    a: two.\n        Both.\n    b: two.\n        Both.\n    c: one: yes, no: no.\n\n"
        "Examples:\n    >>> f()\n"
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return folder


@needs_mkdocs
def test_the_reference_has_every_public_name(site: Path) -> None:
    """Of functions and classes, as the site's inventory lists them, with types and examples."""
    packed = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    listed = {line.split()[0] for line in zlib.decompress(packed).decode().splitlines()}
    for module in (memformer_kernels, nn, memformer_lab, virtual_gpu):
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                assert {f"{module.__name__}.{name}", f"{value.__module__}.{name}"} & listed, name
    page = (site / "api" / "functional.html").read_text(encoding="utf-8")
    assert "torch.Size" in page
    assert "Example:" not in page
    assert re.search(r"<code>z</code>.*?<code>.*?Tensor.*?</code>.*?tasks \(B, N, D\)", page, re.DOTALL)


@needs_mkdocs
def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="?(?:https?:)?//', text) == [], page.name
        assert re.findall(r'<link[^>]*\shref="?(?:https?:)?//', text) == [], page.name

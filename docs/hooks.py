"""What the site has beyond the pages of docs: pages of the tree's root, and notebooks as pages.

The pages read well in the source tree, so that their links are those of the tree. Here a page of the root moves into
the site, and links move with it; a link to a file that is no page of the site becomes plain text.
"""

import json
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
MOVED = ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/results/README.md")
"""Pages outside docs that the site has too, by their path in the tree."""

Notebook = dict[str, Any]


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Adds the pages that are not in docs."""
    from mkdocs.structure.files import File

    for path in MOVED:
        files.append(File.generated(config, path, content=(ROOT / path).read_text(encoding="utf-8")))
    for notebook in sorted(ROOT.glob("docs/notebooks/*.ipynb")):
        text = page_of(json.loads(notebook.read_text(encoding="utf-8")), notebook.name)
        files.append(File.generated(config, f"notebooks/{notebook.stem}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: "Page", config: "MkDocsConfig", files: "Files") -> str:
    """Links of the tree become links of the site."""
    path = page.file.src_uri
    return moved_links(markdown, path if path in MOVED else f"docs/{path}", set(files.src_uris))


def moved_links(text: str, path: str, in_site: set[str]) -> str:
    """A page's text with its links as they are in the site.

    path: of the page, in the tree. in_site: paths of pages and other files in the site.
    """
    folder, here = posixpath.dirname(path), path.removeprefix("docs/")
    at = posixpath.dirname(here)

    def moved(link: "re.Match[str]") -> str:
        label, target, anchor = link.groups()
        if re.match(r"[a-z]+:", target):
            return link[0]
        goal = posixpath.normpath(posixpath.join(folder, target)).removeprefix("docs/")
        page = goal.removesuffix(".ipynb") + ".md"
        if page in in_site and page != here:
            goal = page
        return f"[{label}]({posixpath.relpath(goal, at or '.')}{anchor})" if goal in in_site else label

    return re.sub(r"\[([^\]]*)\]\(([^)#\s]+)(#[\w-]+|)\)", moved, text)


def page_of(notebook: Notebook, name: str) -> str:
    """A notebook as a page: its texts, its code, and what it printed and drew when it was last run."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            if output["output_type"] == "stream":
                parts.append(f'``` {{ .text .output title="output" }}\n{"".join(output["text"]).rstrip()}\n```')
            elif "image/png" in output["data"]:
                picture = "".join(output["data"]["image/png"]).replace("\n", "")
                parts.append(f"![{output['metadata'].get('alt', 'a figure')}](data:image/png;base64,{picture})")
    parts.insert(1, f"[{name}]({name}) is the notebook itself.")
    return "\n\n".join(parts) + "\n"

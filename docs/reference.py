"""How the site reads docstrings: sections and lines of this project in the words of mkdocstrings."""

import re
from typing import Any

from griffe import Extension, Object


class Sections(Extension):
    """Docstrings as `read_by_tools` has them."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrites the text before it is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = read_by_tools(obj.docstring.value)


def read_by_tools(text: str) -> str:
    """ "Example:" is "Examples:", whose code is shown as code; a line that stands for several names is one for each."""
    text = re.sub(r"(?m)^Example:$", "Examples:", text)

    def one_each(line: "re.Match[str]") -> str:
        margin, names, said = line.groups()
        return "\n".join(f"{margin}{name}: {said}" for name in names.split(", "))

    return re.sub(r"(?m)^( {4,})(\w+(?:, \w+)+): (.*(?:\n\1 +\S.*)*)$", one_each, text)

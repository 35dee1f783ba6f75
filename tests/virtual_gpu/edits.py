"""Faults in compiled code: PTX of which a few instructions are replaced."""

import re


def edited(text: str, function: str, pattern: str, wrong: str, places: int = 1) -> str:
    """PTX in which `pattern` stands at so many places of a function, or kernel, and each of them is replaced.

    A pattern meets lines without indentation, comments and places in the source, one blank between two words.
    """
    text = _plain(text)
    begin, end = _extent(text, function)
    body, found = re.subn(pattern, wrong, text[begin:end])
    assert found == places, f"{pattern} stands at {found} places of {function}, not at {places}"
    return text[:begin] + body + text[end:]


def functions(text: str) -> list[str]:
    """Names of the functions and kernels that a PTX file declares or defines."""
    return [found[1] for found in _HEADS.finditer(_plain(text))]


_HEADS = re.compile(r"^(?:\.visible \.entry|\.func)(?: \([^)]*\))? (\w+)", re.MULTILINE)


def _plain(text: str) -> str:
    lines = (" ".join(line.split("//")[0].split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith(".loc ")) + "\n"


def _extent(text: str, function: str) -> tuple[int, int]:
    """Where the definition of a function begins and ends, a declaration before it passed over."""
    for head in _HEADS.finditer(text):
        opening = re.compile(r"[;{]").search(text, head.end())
        if head[1] == function and opening is not None and opening[0] == "{":
            depth, end = 1, opening.end()
            while depth:
                depth += {"{": 1, "}": -1}.get(text[end], 0)
                end += 1
            return head.start(), end
    raise ValueError(f"there is no definition of {function}")

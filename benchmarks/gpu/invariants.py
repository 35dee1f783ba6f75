"""What must hold of compiled Triton kernels, read from their code: it has none of what Triton has been wrong about.

`docs/triton.md` says which faults of Triton each of them keeps away.
"""

import re
from collections.abc import Iterator

_LINE = re.compile(r"^\s*(?P<made>%[\w.]+)(?::\d+)? = (?P<operation>[\w.]+|\"tt\.reduce\"\S*) ?(?P<rest>.*)$")
_NAME = re.compile(r"%[\w.]+(?:#\d+)?")
_PRODUCTS = frozenset({"tt.dot", "ttng.warp_group_dot"})


def broken(ttgir: str, ptx: str) -> list[str]:
    """What a kernel, as Triton's GPU dialect and PTX have it, does against the rules; empty where nothing."""
    found = []
    if re.search(r"\btt\.trans\b", ttgir):
        found.append("a tile in registers is transposed")
    if "tc_gen5_mma" in ttgir or "tcgen05" in ptx:
        found.append("a product is made by tcgen05")
    if "efficient_layout" in ttgir:
        found.append("a sum along an axis was rewritten for locality of threads")
    found += [f"{product} adds to {carried}, which a loop carries" for product, carried in _carried(ttgir)]
    return found


def products(ttgir: str) -> int:
    """Products of tiles in a kernel's code."""
    return sum(operation in _PRODUCTS for _, operation, _ in _operations(ttgir))


def _carried(ttgir: str) -> Iterator[tuple[str, str]]:
    """Products whose sum begins with what a loop carries from one turn to the next, and the name of that."""
    carried = {
        name
        for arguments in re.findall(r"iter_args\((.*?)\) -> ", ttgir)
        for name in re.findall(r"(%[\w.]+) =", arguments)
    }
    sources: dict[str, list[str]] = {}
    begins: list[tuple[str, str]] = []
    for made, operation, rest in _operations(ttgir):
        names = _NAME.findall(rest.split(" loc(")[0].split(" : ")[0])
        if operation == "ttng.warp_group_dot_wait":
            # What it waits for, sums and operands alike, it hands on one by one.
            sources |= {f"{made}#{place}": [name] for place, name in enumerate(names)}
            names = names[:1]
        if operation in _PRODUCTS:
            begins.append((made, names[2]))
            names = names[2:3]
        elif operation in ("tt.load", "ttg.local_load", "tt.reduce", "scf.for", "scf.if"):
            names = []
        sources[made] = names
    for product, begin in begins:
        waiting, seen = [begin], set[str]()
        while waiting:
            name = waiting.pop()
            if name.split("#")[0] in carried:
                yield product, name
                break
            if name not in seen:
                seen.add(name)
                waiting += sources.get(name, sources.get(name.split("#")[0], []))


def _operations(ttgir: str) -> Iterator[tuple[str, str, str]]:
    """The name that every operation with a result makes, the operation, and the rest of its line."""
    for line in ttgir.splitlines():
        parts = _LINE.match(line)
        if parts is not None:
            yield parts["made"], parts["operation"].strip('"'), parts["rest"]

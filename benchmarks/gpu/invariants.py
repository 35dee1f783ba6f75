"""What must hold of compiled Triton kernels, read from their code: it has none of what Triton has been wrong about.

`docs/triton.md` says which faults of Triton each of them keeps away.
"""

import re
from collections import Counter
from collections.abc import Iterator

_LINE = re.compile(r"^\s*(?P<made>%[\w.]+)(?::\d+)? = (?P<operation>[\w.]+|\"tt\.reduce\"\S*) ?(?P<rest>.*)$")
_NAME = re.compile(r"%[\w.]+(?:#\d+)?")
_PRODUCTS = frozenset({"tt.dot", "ttng.warp_group_dot"})


def broken(ttgir: str, ptx: str) -> list[str]:
    """What a kernel, as Triton's GPU dialect and PTX have it, does against the rules; empty where nothing."""
    found = []
    found += [f"{product} multiplies {turned}, a product turned in registers" for product, turned in _turned(ttgir)]
    if "tc_gen5_mma" in ttgir or "tcgen05" in ptx:
        found.append("a product is made by tcgen05")
    if "efficient_layout" in ttgir:
        found.append("a sum along an axis was rewritten for locality of threads")
    found += [f"{product} adds to {carried}, which a loop carries" for product, carried in _carried(ttgir)]
    return found


def products(ttgir: str) -> int:
    """Products of tiles in a kernel's code."""
    return sum(operation in _PRODUCTS for _, operation, _ in _operations(ttgir))


def _turned(ttgir: str) -> Iterator[tuple[str, str]]:
    """Products of what was turned in registers after another product had made it, and the name of that."""
    sources, turned, made_by = _sources(ttgir)
    for product, operands in made_by.items():
        waiting, seen = [(name, False) for name in operands[:2]], set[tuple[str, bool]]()
        while waiting:
            name, is_turned = waiting.pop()
            if (name, is_turned) in seen:
                continue
            seen.add((name, is_turned))
            if is_turned and name.split("#")[0] in made_by:
                yield product, name
                break
            is_turned = is_turned or name in turned
            waiting += [(source, is_turned) for source in sources.get(name, sources.get(name.split("#")[0], []))]


def _sources(ttgir: str) -> tuple[dict[str, list[str]], set[str], dict[str, list[str]]]:
    """What every name is made of, also around loops; the names of turned tiles; products and their operands."""
    sources: dict[str, list[str]] = {}
    turned: set[str] = set()
    made_by: dict[str, list[str]] = {}
    open_blocks: list[tuple[str, list[str]]] = []
    for line in _scoped(ttgir):
        parts = _LINE.match(line)
        names = _NAME.findall((parts["rest"] if parts else line).split(" loc(")[0].split(" : ")[0])
        operation = parts["operation"].strip('"') if parts else ""
        if operation in ("scf.for", "scf.while", "scf.if"):
            made = parts["made"] if parts else ""
            _, _, arguments = line.partition("iter_args(")
            begins = re.findall(r"(%[\w.]+) = (%[\w.]+(?:#\d+)?)", arguments)
            for carried, first in begins:
                sources[carried] = [first]
            # A branch yields once more, in its else.
            open_blocks += [(made, [carried for carried, _ in begins])] * (2 if operation == "scf.if" else 1)
        elif line.strip().startswith("scf.yield"):
            made, carried_names = open_blocks.pop() if open_blocks else ("", [])
            for place, name in enumerate(names):
                for target in (f"{made}#{place}", *carried_names[place : place + 1]):
                    sources.setdefault(target, []).append(name)
                if len(names) == 1:
                    sources.setdefault(made, []).append(name)
        elif parts is not None:
            made = parts["made"]
            if operation == "ttng.warp_group_dot_wait":
                sources |= {f"{made}#{place}": [name] for place, name in enumerate(names)}
            # A sum along an axis is no tile any more.
            sources[made] = [] if operation in ("tt.load", "tt.reduce") else names
            if operation == "tt.trans":
                turned.add(made)
            if operation in _PRODUCTS:
                made_by[made] = names
    return sources, turned, made_by


def _carried(ttgir: str) -> Iterator[tuple[str, str]]:
    """Products whose sum begins with what a loop carries from one turn to the next, and the name of that."""
    carried = {
        name
        for arguments in re.findall(r"iter_args\((.*?)\) -> ", "\n".join(_scoped(ttgir)))
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
    for line in _scoped(ttgir):
        parts = _LINE.match(line)
        if parts is not None:
            yield parts["made"], parts["operation"].strip('"'), parts["rest"]


def _scoped(ttgir: str) -> Iterator[str]:
    """The lines of a kernel with a name of its own for everything: loops and branches side by side use names again."""
    scopes: list[dict[str, str]] = [{}]
    uses = Counter[str]()
    for line in _lines(ttgir):
        if line.strip().startswith("}") and len(scopes) > 1:
            scopes.pop()
        inner: dict[str, str] = {}
        text, begin = "", 0
        for match in re.finditer(r"%[\w.]+", line):
            name = match[0]
            if re.match(r"(?::\d+)? = ", line[match.end() :]):
                uses[name] += 1
                own = name if uses[name] == 1 else f"{name}.again{uses[name]}"
                # What a line makes is known behind it; what a loop carries and counts, inside it.
                (inner if line[: match.start()].strip() else scopes[-1])[name] = own
            else:
                own = next((scope[name] for scope in reversed(scopes) if name in scope), name)
            text += line[begin : match.start()] + own
            begin = match.end()
        yield text + line[begin:]
        if line.rstrip().endswith("{"):
            scopes.append(inner)


def _lines(ttgir: str) -> Iterator[str]:
    """The lines of a kernel but for the bodies of sums along an axis, whose names are other things elsewhere."""
    inside = False
    for line in ttgir.splitlines():
        if not inside:
            yield line
        inside = not line.strip().startswith("})") if inside else '"tt.reduce"' in line and "})" not in line

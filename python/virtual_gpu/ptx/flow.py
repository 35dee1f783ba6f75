"""Control flow: blocks of instructions, and where the lanes that a branch parts come together again."""

from virtual_gpu.ptx.code import Code

LEAVES = ("exit", "trap")


def starts(code: Code) -> list[int]:
    """The first instruction of each block, in order."""
    found = {0}
    for place, instruction in enumerate(code.instructions):
        if instruction.key == "bra":
            assert instruction.target is not None
            found.add(instruction.target.place)
        if instruction.key == "bra" or instruction.key in LEAVES:
            found.add(place + 1)
    return sorted(place for place in found if place < len(code.instructions))


def successors(code: Code, blocks: list[int]) -> list[list[int]]:
    """Of each block; the number of blocks stands for the kernel's end."""
    number = {place: block for block, place in enumerate(blocks)}
    out: list[list[int]] = []
    for block in range(len(blocks)):
        end = blocks[block + 1] if block + 1 < len(blocks) else len(code.instructions)
        last = code.instructions[end - 1]
        after = [] if last.guard is None and last.key in ("bra", *LEAVES) else [block + 1]
        if last.key == "bra":
            assert last.target is not None
            after.append(number[last.target.place])
        elif last.key in LEAVES:
            after.append(len(blocks))
        out.append(after)
    return out


def reconverge(code: Code) -> None:
    """Gives each branch with a guard the place where its lanes come together, or -1 where there is none before the end.

    That is its immediate post-dominator among the ways that go on: lanes that leave the kernel early are waited for by
    none.
    """
    blocks = starts(code)
    after = successors(code, blocks)
    post = _post_dominators(_going_on(code, blocks, after))
    for block in range(len(blocks)):
        end = blocks[block + 1] if block + 1 < len(blocks) else len(code.instructions)
        last = code.instructions[end - 1]
        if last.key == "bra" and last.guard is not None and post[block] < len(blocks):
            last.reconverge = blocks[post[block]]


def _going_on(code: Code, blocks: list[int], after: list[list[int]]) -> list[list[int]]:
    """The successors without early exits: the kernel's end keeps as few ways to it, the last in the text, as all blocks
    need to reach it."""
    end = len(blocks)
    leaves = {block for block in range(end) if after[block] == [end]}
    bare = {block for block in leaves if code.instructions[blocks[block]].key in LEAVES}

    def exits(block: int, other: int) -> bool:
        return (other == end and block not in bare) or (other in bare and len(after[block]) > 1)

    going_on = [[other for other in following if not exits(block, other)] for block, following in enumerate(after)]
    reachable = _reaching(after, end)
    while True:
        lost = reachable - _reaching(going_on, end)
        cut = [block for block in lost if len(going_on[block]) < len(after[block])]
        if not cut:
            return going_on
        going_on[max(cut)] = after[max(cut)]


def _reaching(after: list[list[int]], end: int) -> set[int]:
    """The blocks from which a way leads to the end."""
    return set(_postorder(_reversed(after), end))


def _reversed(after: list[list[int]]) -> list[list[int]]:
    before: list[list[int]] = [[] for _ in range(len(after) + 1)]
    for block, following in enumerate(after):
        for other in following:
            before[other].append(block)
    return before


def _post_dominators(after: list[list[int]]) -> list[int]:
    """The immediate post-dominator of each block: Cooper, Harvey and Kennedy's iteration on the reversed graph.

    A block from which no path leads to the end has the end.
    """
    end = len(after)
    order = _postorder(_reversed(after), end)
    rank = {block: number for number, block in enumerate(order)}
    dominator = dict.fromkeys([end], end)
    changed = True
    while changed:
        changed = False
        for block in reversed(order[:-1]):
            known = [other for other in after[block] if other in dominator]
            if not known:
                continue
            best = known[0]
            for other in known[1:]:
                while best != other:
                    if rank[best] < rank[other]:
                        best = dominator[best]
                    else:
                        other = dominator[other]
            if dominator.get(block) != best:
                dominator[block] = best
                changed = True
    return [dominator.get(block, end) for block in range(end)]


def _postorder(graph: list[list[int]], root: int) -> list[int]:
    """Blocks that are reached from the root, each behind those reached from it."""
    seen, order = {root}, []
    stack = [(root, iter(graph[root]))]
    while stack:
        block, rest = stack[-1]
        for other in rest:
            if other not in seen:
                seen.add(other)
                stack.append((other, iter(graph[other])))
                break
        else:
            order.append(block)
            stack.pop()
    return order

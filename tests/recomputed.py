"""A record's figures computed again from the networks that it ships, in plain NumPy and nothing of the package.

    python tests/recomputed.py docs/experiments

Tasks are drawn as they are defined: x ~ N(0, C C^T), w* ~ N(0, W W^T), y = x . w* with noise on the examples. A layer
is the sum that the README states, token by token. The d queries are C's columns: where a prediction is linear in the
query, their squared errors add up to the expected one of a random query. CGD stands beside networks of as many layers.
"""

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

TASKS = 200_000
CHUNK = 5_000
RESAMPLES = 200
LEVELS = (0.0005, 0.9995)
"""Ends of the intervals over tasks: twenty figures together are outside one of theirs once in fifty records."""

ROUNDING = 0.01
"""What float32 and the record's own sampling of tasks may add to a logarithm."""


class Tasks(NamedTuple):
    """x (B, n + d, d), the queries last; y (B, n) of the examples; answer (B, d) of the queries."""

    x: Array
    y: Array
    answer: Array


class Figure(NamedTuple):
    """A value of a record and half the width of its interval over tasks; what it is here, and the interval of that."""

    name: str
    recorded: float
    width: float
    found: float
    low: float
    high: float

    @property
    def agrees(self) -> bool:
        below, above = (math.hypot(self.width, x) for x in (self.found - self.low, self.high - self.found))
        return self.found - below - ROUNDING <= self.recorded <= self.found + above + ROUNDING


def draw(rng: np.random.Generator, count: int, n: int, factor: Array, prior: Array, noise: float) -> Tasks:
    """Fresh tasks of x ~ N(0, factor factor^T) and w* ~ N(0, prior prior^T)."""
    d = len(factor)
    examples = rng.standard_normal((count, n, d)) @ factor.T
    x = np.concatenate([examples, np.broadcast_to(factor.T, (count, d, d))], axis=1)
    y = np.einsum("bnd,bd->bn", x, rng.standard_normal((count, d)) @ prior.T)
    return Tasks(x, y[:, :n] + noise * rng.standard_normal((count, n)), y[:, n:])


def forward(tasks: Tasks, arguments: dict[str, Any]) -> Array:
    """(B, d) predictions: R = att + beta R', Z = Z + sum_h gate_h sum_j gamma_{l, j, h} R_{j, h}."""
    given = {name: np.asarray(value, dtype=np.float64) for name, value in arguments.items()}
    n, width = tasks.y.shape[1], tasks.x.shape[2] + 1
    stack = given["q"].shape[:2]
    q, p = (_bordered(given.get(name), width, stack, corner) for name, corner in (("q", 0.0), ("p", 1.0)))
    layers, heads = q.shape[:2]
    gate = np.broadcast_to(given.get("gate", np.ones(1)), (layers, heads))
    z = np.zeros((*tasks.x.shape[:2], width))
    z[:, :, :-1], z[:, :n, -1] = tasks.x, tasks.y
    registers: list[list[Array]] = []
    for layer in range(layers):
        gram = np.matmul(z[:, :n].transpose(0, 2, 1), z[:, :n]) / n
        own = [z @ q[layer, head] @ (gram @ p[layer, head].T) for head in range(heads)]
        if "beta" in given and registers:
            own = [new + _of(given["beta"][layer], head) * registers[-1][head] for head, new in enumerate(own)]
        registers.append(own)
        for head in range(heads):
            for j, weight in _weights(given.get("gamma"), layer, head):
                z = z + gate[layer, head] * weight * registers[j][head]
    prediction: Array = -z[:, n:, -1]
    return prediction


def _bordered(block: Array | None, width: int, stack: tuple[int, ...], corner: float) -> Array:
    """(L, H, D, D) matrices: a block of the features alone stands above and left of a corner; none is all zeros."""
    whole = np.zeros((*stack, width, width))
    whole[..., -1, -1] = corner
    if block is not None:
        whole[..., : block.shape[-2], : block.shape[-1]] = block
    return whole


def _of(coefficients: Array, head: int) -> Array:
    """A head's coefficients, which broadcast over tokens and features; one for all heads where there is one."""
    return np.asarray(coefficients[head % len(coefficients)])


def _weights(gamma: Array | None, layer: int, head: int) -> Iterator[tuple[int, Array | float]]:
    """Registers that a layer adds, with their weights: all up to its own by gamma (L, L, H, ...), else its own."""
    if gamma is None or gamma.ndim == 4:
        yield layer, 1.0 if gamma is None else _of(gamma[layer % len(gamma)], head)
        return
    row = gamma[layer % len(gamma)]
    for j in range(layer + 1):
        yield j, _of(row[j], head)


def conjugate_gradients(tasks: Tasks, steps: int) -> Array:
    """(B, d) predictions by so many steps on w^T H w / 2 - b^T w, from 0, with exact line searches."""
    n = tasks.y.shape[1]
    x = tasks.x[:, :n]
    h, r = np.einsum("bni,bnj->bij", x, x) / n, np.einsum("bni,bn->bi", x, tasks.y) / n
    w, direction = np.zeros_like(r), r.copy()
    for _ in range(steps):
        ahead = np.einsum("bij,bj->bi", h, direction)
        square = (r * r).sum(1)
        step = np.divide(square, (direction * ahead).sum(1), out=np.zeros_like(square), where=square > 1e-300)
        w, r = w + step[:, None] * direction, r - step[:, None] * ahead
        again = np.divide((r * r).sum(1), square, out=np.zeros_like(square), where=square > 1e-300)
        direction = r + again[:, None] * direction
    prediction: Array = np.einsum("bqd,bd->bq", tasks.x[:, n:], w)
    return prediction


def judged(
    name: str,
    recorded: tuple[float, float],
    one: dict[str, Any],
    predict: Callable[[Tasks], Array],
    tasks: int,
    seed: int,
) -> Figure:
    """A recorded logarithm of a mean or median squared error beside the same of fresh tasks."""
    rng = np.random.default_rng(seed)
    factor, prior = (np.asarray(one[key], dtype=np.float64) for key in ("factor", "prior"))
    errors = []
    for start in range(0, tasks, CHUNK):
        drawn = draw(rng, min(CHUNK, tasks - start), one["n"], factor, prior, one["noise"])
        errors.append(((predict(drawn) - drawn.answer) ** 2).sum(1))
    squares = np.concatenate(errors)
    # Medians of resampled tasks; means of resampled blocks, since tasks are independent.
    if one["statistic"] == "median":
        found = float(np.median(squares))
        draws = [np.median(rng.choice(squares, len(squares))) for _ in range(RESAMPLES)]
        low, high = float(np.mean(draws) - 3.5 * np.std(draws)), float(np.mean(draws) + 3.5 * np.std(draws))
    else:
        found = float(squares.mean())
        blocks = squares[: len(squares) // 100 * 100].reshape(100, -1).mean(1)
        low, high = np.quantile(rng.choice(blocks, (20 * RESAMPLES, 100)).mean(1), LEVELS).tolist()
    return Figure(name, *recorded, math.log(found), math.log(max(low, 1e-300)), math.log(high))


def figures(folder: Path, tasks: int = TASKS) -> Iterator[Figure]:
    """Every network of a folder of records, and CGD beside those of as many layers where the record has its curve."""
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        for order, one in enumerate(record["results"].get("networks", ())):
            curves = next(panel["series"] for panel in record["results"]["panels"] if panel["name"] == one["panel"])
            values = {curve["label"]: _of_first_seed(curve) for curve in curves}
            place = f"{record['name']}, {one['panel']} at {one['x']:g}"
            yield judged(
                f"{place}: {one['label']}",
                values[one["label"]][one["x"]],
                one,
                lambda drawn, given=one["arguments"]: forward(drawn, given),
                tasks,
                order,
            )
            layers = len(one["arguments"]["q"])
            if one["statistic"] == "mean" and one["x"] == layers and layers in values.get("CGD", {}):
                yield judged(
                    f"{place}: CGD",
                    values["CGD"][layers],
                    one,
                    lambda drawn, steps=layers: conjugate_gradients(drawn, steps),
                    tasks,
                    order,
                )


def _of_first_seed(curve: dict[str, Any]) -> dict[float, tuple[float, float]]:
    """By place a curve's value, and half the width of its interval over tasks."""
    widths = curve["sampling"] or [0.0] * len(curve["x"])
    return {x: (float(v), float(w)) for x, v, w in zip(curve["x"], curve["values"][0], widths, strict=True)}


def main() -> int:
    """Prints a line a figure; 1 if one does not agree."""
    found = list(figures(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/experiments")))
    for one in found:
        said = "agrees" if one.agrees else "DIFFERS"
        print(f"{one.name}: recorded {one.recorded:.4f}, here {one.found:.4f} [{one.low:.4f}, {one.high:.4f}], {said}")
    return 0 if found and all(one.agrees for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())

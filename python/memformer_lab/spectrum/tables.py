"""An explanation in tables for the terminal."""

from __future__ import annotations

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from memformer_lab.solvers.estimates import LEVEL
from memformer_lab.spectrum.explanation import BEST, CGD, NETWORK, ONE, Explanation


def method_table(explanation: Explanation) -> Table:
    """Errors of the network and of classical methods on the same tasks, with the constants of each."""
    table = Table(
        box=SIMPLE_HEAD,
        title="ln of the mean squared query error",
        caption="Alike: the least cosine of a layer's matrix with A. Mixed: the share of what is left (root of the "
        "mean square) that is not along eigenvectors of A H. Constants are the best for these tasks.",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("method", "ln mean", f"{LEVEL:.0%} interval", "what it is"):
        table.add_column(name, justify="right" if name.startswith("ln") else "left")
    notes = {
        NETWORK: f"layers' matrices alike to {explanation.likeness.min():.4f}, {100 * explanation.mixed:.1f}% mixed",
        ONE: f"one preconditioner A, a polynomial of degree {explanation.learned.layers}",
        BEST: "any coefficients with that A",
        CGD: "a polynomial for each task",
    }
    for name, one in explanation.errors.items():
        constants = ", ".join(f"{key} {value:.3g}" for key, value in explanation.constants.get(name, {}).items())
        interval = Text(f"[{one.low:.2f},{one.high:.2f}]")
        table.add_row(name, f"{one.log_mean:.2f}", interval, constants or notes.get(name, ""))
    return table


def step_table(explanation: Explanation) -> Table:
    """Zeros of the network's polynomial, the steps that they are, and the nearest three-term recurrence."""
    nearest = explanation.learned.recurrence(explanation.top)
    zeros = list(explanation.learned.zeros(explanation.top))
    table = Table(
        box=SIMPLE_HEAD,
        title="The network's polynomial in A H, and its layers",
        caption="Zeros in increasing order, each with the gradient step 1 / zero; and layer by layer the recurrence "
        "step A g + momentum (last move), "
        + ("which the network is." if nearest.exact else "with the share of the move that it does not explain."),
        title_justify="left",
        caption_justify="left",
    )
    for name in ("", "zero", "1 / zero", "step of layer", "momentum", "unexplained"):
        table.add_column(name, justify="right")
    for layer in range(explanation.learned.layers):
        known = zeros[layer] if layer < len(zeros) else None
        table.add_row(
            str(layer + 1),
            "none" if known is None else _complex(known),
            "0" if known is None else _complex(1 / known),
            f"{nearest.steps[layer]:.4g}",
            f"{nearest.momenta[layer]:.4g}",
            f"{100 * nearest.misfits[layer]:.2g}%",
        )
    return table


def _complex(value: complex) -> str:
    if abs(value.imag) <= 1e-6 * abs(value):
        return f"{value.real:.4g}"
    return f"{value.real:.3g}{np.imag(value):+.2g}i"

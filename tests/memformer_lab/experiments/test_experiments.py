"""Every experiment at tiny scale, and every rule on made-up numbers, both ways."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable

import pytest
import torch

from memformer_lab.experiments import e08_memory, e13_one_layer
from memformer_lab.experiments.runner import EXPERIMENTS, find
from memformer_lab.reports.curves import Series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.solvers.convergence import fit_convergence
from memformer_lab.solvers.estimates import estimate
from memformer_lab.solvers.judging import solver_errors, steps_of
from memformer_lab.tasks.gaussian import GaussianTasks

NAMES = [one.name for one in EXPERIMENTS]


@pytest.fixture(scope="session")
def tiny() -> dict[str, Results]:
    return {}


def _tiny(name: str, kept: dict[str, Results]) -> Results:
    if name not in kept:
        kept[name] = find(name).run(Setting("tiny"))
    return kept[name]


def _changed(results: Results, value: Callable[[Panel, Series, float, float], float]) -> Results:
    """The same results with other values, (panel, series, place, old) -> new, of curves trained to their end."""
    panels = []
    for panel in results.panels:
        curves = tuple(
            dataclasses.replace(
                one,
                values=tuple(
                    tuple(value(panel, one, x, v) for x, v in zip(one.x, row, strict=True)) for row in one.values
                ),
                optimum=(),
                longer=(),
            )
            for one in panel.series
        )
        panels.append(dataclasses.replace(panel, series=curves))
    return dataclasses.replace(results, panels=tuple(panels))


def test_all_are_there() -> None:
    assert [one.number for one in EXPERIMENTS] == [*range(1, 30)]
    assert len(set(NAMES)) == 29
    assert find("2") is find("lfom")
    with pytest.raises(ValueError, match="no experiment is called 'magic'; there are 1 cgd"):
        find("magic")


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_a_referee_would_still_ask(name: str) -> None:
    asks = find(name).asks
    assert asks
    assert not asks.endswith(".")


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_is_judged(name: str, tiny: dict[str, Results]) -> None:
    results = _tiny(name, tiny)
    assert results.panels
    for panel in results.panels:
        assert panel.series
        for one in panel.series:
            places = range(len(panel.categories)) if panel.categories else one.x
            assert set(one.x) <= set(places)
    again = Results.from_plain(json.loads(json.dumps(results.to_plain(), allow_nan=False)))
    experiment = find(name)
    verdict = experiment.verdict(results, "full")
    assert experiment.verdict(again, "full") == verdict
    assert all(check.text and math.nan is not check.passed for check in verdict.checks)
    assert experiment.verdict(results, "tiny").label == "inconclusive at this scale"
    assert experiment.find(again) == experiment.find(results)
    assert any(character.isdigit() for character in experiment.find(results))


@pytest.mark.parametrize("name", ["cgd", "learnability", "published"])
def test_a_seed_says_everything(name: str, tiny: dict[str, Results]) -> None:
    assert find(name).run(Setting("tiny")).to_plain() == _tiny(name, tiny).to_plain()


def _is_ours(one: Series) -> bool:
    return any(word in one.label for word in ("LFOM", "cgd-like", "Memformer", "memformer", "adapted"))


_BEST = {
    "cgd": lambda p, s, x, v: -20.0 - x if "cgd-like" in s.label else _reference(p, x) if s.label == "CGD" else 0.0,
    "lfom": lambda p, s, x, v: -20.0 if s.label == "LFOM" else _reference(p, x) if s.label == "CGD" else v,
    "gdpp": lambda p, s, x, v: -20.0 if s.label.startswith("LFOM with GD++") else 0.0,
    "small-batches": lambda p, s, x, v: -20.0 if s.label.startswith("LFOM") else 0.0,
    "heads": lambda p, s, x, v: -x if "heads" in s.label else 0.0,
    "experts": lambda p, s, x, v: -5.0 if s.label in ("adapted gates", "oracle gates") else 0.0,
    "momentum": lambda p, s, x, v: -5.0 if s.label == "LFOM" else -2.0 if "best constants" in s.label else 0.0,
    "memory": lambda p, s, x, v: -5.0 if x in (5, 9) else 0.0,
    "depth": lambda p, s, x, v: _depth(p, s, x),
    "scaling": lambda p, s, x, v: _scaling(p, s, x),
    "condition": lambda p, s, x, v: _condition(p, s, x),
    "learnability": lambda p, s, x, v: 1 / x,
    "one-layer": lambda p, s, x, v: 0.001,
    "second-order": lambda p, s, x, v: _second_order(p, s, x),
    "families": lambda p, s, x, v: -9.0 if s.label.startswith("LFOM") else 0.0,
    "real": lambda p, s, x, v: {"Memformer less the method": -9.0, "saved by the start": 2.0}.get(s.label, -1.0),
    "attention": lambda p, s, x, v: _attention(s),
    "mixed-noise": lambda p, s, x, v: -9.0 if "dense" in s.label else -8.99 if "adaptive" in s.label else 0.0,
    "published": lambda p, s, x, v: 1e-15,
    "landscape": lambda p, s, x, v: _landscape(p, s, x),
    "newton": lambda p, s, x, v: -(2.0**x) if p.name == "residual" else 1e-15,
    "adaptive": lambda p, s, x, v: 1e-15,
    "descent-ascent": lambda p, s, x, v: -40.0,
    "feed-forward": lambda p, s, x, v: -9.0 if "feed-forward" in s.label else 0.0,
    "shift": lambda p, s, x, v: _shift(p, s, x),
    "sparse": lambda p, s, x, v: {"LISTA-CP, learned weights": -x, "ALISTA, analytic weights": -2 * x}.get(s.label, 0),
    "spectrum": lambda p, s, x, v: _spectrum(p, s),
    "prompt-lengths": lambda p, s, x, v: -x if "LFOM" in s.label and "alone" not in s.label else 0.0,
    "classification": lambda p, s, x, v: -x if "LFOM" in s.label else 0.0,
}  # fmt: skip


def _second_order(panel: Panel, one: Series, x: float) -> float:
    if panel.name == "fits":
        doubles = panel.categories[int(x)] in ("GD++", "Newton")
        return -5.0 if doubles is (one.label == "a - b 2^k") else 0.0
    if panel.name == "similarity":
        alike = {"GD++": "Newton", "LFOM": "CGD"}[one.label.split(",")[0]]
        return 0.9 if one.label.endswith(alike) else 0.1
    return -9.0 if one.label.startswith(("GD++", "LFOM, Bm free")) else 0.0


def _attention(one: Series) -> float:
    known = {"linear attention": -9.0, "linear attention + feed-forward": -8.0}
    return known.get(one.label, -5.0 if "heads" in one.label else 0.0)


def _landscape(panel: Panel, one: Series, x: float) -> float:
    if panel.name == "noise":
        return (20.0, 10.0, 5.0, 2.0)[int(x)] if one.label == "gradient noise" else 30.0
    if panel.name == "smoothness":
        return 0.0 if one.label == "none" else 0.9
    return {"Adam": -9.0, "SGD": 0.0}[one.label]


def _depth(panel: Panel, one: Series, x: float) -> float:
    if panel.name == "stable":
        return -1.0 if one.label == "random start, no clipping" else 1.0
    return 0.0 if panel.name == "excess" else -x


def _scaling(panel: Panel, one: Series, x: float) -> float:
    if panel.name == "cost":
        return 1.0 if one.label == "LFOM from H and b" else math.exp(x)
    return -10.0 - math.log(x) if "A_l" in one.label and "excess" not in panel.name else 0.0


def _condition(panel: Panel, one: Series, x: float) -> float:
    if one.label.startswith("LFOM"):
        return -9.0 if panel.name == "condition" else -0.5
    return 1.0 if one.label == "a growth of 1" else 3.0 * math.log(x)


def _shift(panel: Panel, one: Series, x: float) -> float:
    """One covariance breaks at the last three shifts, a rotation a prompt never."""
    if one.label == "LFOM, one covariance":
        return 9.0 if x >= 3 else -1.0
    if one.label == "LFOM with Bm free, a rotation a prompt":
        return -9.0
    return -3.0 if one.label == "LFOM, a rotation a prompt" and x == 4 else 0.0


def _spectrum(panel: Panel, one: Series) -> float:
    """Momenta and shares of zeros are large, differences and what is left over are small."""
    if panel.name == "errors":
        return -9.0 if one.label.startswith("LFOM") else 0.0
    return 1.0 if panel.name == "inside" or "least momentum" in one.label else -1.0


def _reference(panel: Panel, x: float) -> float:
    return panel["CGD, reference"].mean(x)


def _numbers(name: str, results: Results, good: bool) -> Results:
    numbers = dict(results.numbers)
    if name == "memory":
        numbers = dict.fromkeys(numbers, 1.0 if good else 0.0)
    if name == "learnability":
        numbers = dict.fromkeys(numbers, -1.0 if good else 0.0)
    if name in ("heads", "small-batches"):
        numbers = dict.fromkeys(numbers, 1e-15 if good else 1.0)
    if name == "newton":
        numbers = dict.fromkeys(numbers, 1.0 if good else 99.0)
    return dataclasses.replace(results, numbers=numbers)


@pytest.mark.parametrize("name", NAMES)
def test_rules_accept_what_the_claim_says(name: str, tiny: dict[str, Results]) -> None:
    good = _numbers(name, _changed(_tiny(name, tiny), _BEST[name]), good=True)
    verdict = find(name).verdict(good, "full")
    assert verdict.label != "not reproduced", [check.text for check in verdict.checks if check.passed is not True]


@pytest.mark.parametrize("name", NAMES)
def test_rules_refuse_the_opposite(name: str, tiny: dict[str, Results]) -> None:
    def opposite(panel: Panel, one: Series, x: float, value: float) -> float:
        best = _BEST[name](panel, one, x, value)
        if name == "learnability":
            return x if one.label == "fresh tasks" else 0.0
        return 1.0 if name in ("one-layer", "published", "newton", "adaptive") else -best

    bad = _numbers(name, _changed(_tiny(name, tiny), opposite), good=False)
    assert find(name).verdict(bad, "full").label == "not reproduced"


@pytest.mark.parametrize("name", NAMES)
def test_a_failed_run_shows_nothing(name: str, tiny: dict[str, Results]) -> None:
    """What is not a number never passes a rule; where it is a rival's too, nothing is known."""
    broken = _changed(_tiny(name, tiny), lambda p, s, x, v: math.nan)
    broken = dataclasses.replace(broken, numbers=dict.fromkeys(broken.numbers, math.nan))
    verdict = find(name).verdict(broken, "full")
    assert True not in verdict.parts.values()
    assert verdict.label in ("not reproduced", "not concluded")


@pytest.mark.parametrize("name", ["depth", "scaling", "condition", "one-layer", "shift"])
def test_claims_about_training_fall_where_training_falls_short(name: str, tiny: dict[str, Results]) -> None:
    """Far above a limit, with the optimum as well known as it is."""
    results, worse = _tiny(name, tiny), 50.0
    panels = []
    for panel in results.panels:
        curves = [
            dataclasses.replace(
                one, values=tuple(tuple(value + worse * (k + 1) for k, value in enumerate(row)) for row in one.values)
            )
            if one.optimum
            else one
            for one in panel.series
        ]
        panels.append(dataclasses.replace(panel, series=tuple(curves)))
    verdict = find(name).verdict(dataclasses.replace(results, panels=tuple(panels)), "full")
    assert False in verdict.parts.values()


@pytest.mark.parametrize("method", ["CGD", "GD"])
def test_no_part_of_second_order_holds_for_a_first_order_method(method: str, tiny: dict[str, Results]) -> None:
    """Its own curve in the network's place, as many steps as layers and one more, fails every part of the claim."""
    tasks = GaussianTasks(10, 40, (1.0,) * 10, dtype=torch.float64)
    name = {"CGD": "conjugate_gradient", "GD": "gradient_descent"}[method]
    found = estimate(solver_errors(tasks, [steps_of(name, 10)]), 3000, 0)

    for ahead in (0, 1):

        def fed(panel: Panel, one: Series, x: float, value: float, ahead: int = ahead) -> float:
            step = int(x) - 1
            if panel.name == "depth":
                place = step + ahead if one.label == "GD++" else step
                return found[place].log_mean if one.label in ("GD++", method) else value
            if panel.name == "fits":
                curve = [one.log_median for one in found[ahead : ahead + 5]]
                if panel.categories[int(x)] == "GD++":
                    fit = fit_convergence(range(1, 6), curve)
                    return math.log(fit.exponential if one.label == "a - b 2^k" else fit.linear)
            if panel.name == "similarity" and one.label.startswith("GD++"):
                return 1.0 if one.label.endswith(f", {method}") else 0.5
            if panel.name == "turned" and one.label == "GD++":
                return panel["CGD, 4" if method == "CGD" else "GD, 256"].mean(x)
            return value

        results = _changed(_tiny("second-order", tiny), fed)
        parts = find("second-order").verdict(results, "full").parts
        assert len(parts) == 4
        assert True not in parts.values()


def test_the_closed_form_is_the_optimum() -> None:
    """Any other A has a larger loss on tasks with a known expectation, here by moments in float64."""
    tasks = GaussianTasks(3, 12, (1.0, 0.5, 0.8), rotation_seed=3, noise=0.7, dtype=torch.float64)
    drawn = tasks.quadratics(400_000, torch.Generator().manual_seed(0))
    b, w = drawn.b, drawn.weights
    optimum = torch.linalg.solve(b.T @ b, b.T @ w).T
    expected = e13_one_layer.closed_form(tasks)
    assert float((optimum - expected).norm() / expected.norm()) < 0.02


def test_memory_is_judged_by_optima_and_by_best_coefficients(tiny: dict[str, Results]) -> None:
    results = _tiny("memory", tiny)
    names = results["block"].categories

    def with_gain(moving: float) -> Results:
        def value(panel: Panel, one: Series, x: float, old: float) -> float:
            gains = panel.name.startswith("block") and names[int(x)] in (e08_memory.BEST_LFOM, e08_memory.LFOM)
            return -moving if gains else 0.0

        return _changed(results, value)

    verdict = find("memory").verdict(with_gain(0.4), "full")
    assert verdict.parts == {
        "with A free and Bm = 0": False,
        "with A scalar and Bm = 0": False,
        "with A and Bm free": True,
    }
    assert verdict.label == "reproduced in part"
    assert "ln of the median by -0.4 at best coefficients" in e08_memory.find(with_gain(0.4))
    assert find("memory").verdict(with_gain(-0.4), "full").label == "not reproduced"


def test_a_bound_is_contradicted_or_left_open(tiny: dict[str, Results]) -> None:
    """No fall of the gap shows an upper bound whose constant is free, nor does a gap below zero contradict it."""
    results, experiment = _tiny("learnability", tiny), find("learnability")
    for power, label in (
        (-1.0, "not concluded"),
        (-0.6, "not concluded"),
        (-0.2, "not reproduced"),
        (math.nan, "not concluded"),
    ):

        def value(panel: Panel, one: Series, x: float, old: float, power: float = power) -> float:
            gap = -1.0 if math.isnan(power) else x**power
            return 5.0 + gap if one.label == "fresh tasks" else 5.0

        changed = _changed(results, value)
        changed = dataclasses.replace(changed, numbers=dict.fromkeys(results.numbers, power))
        assert experiment.verdict(changed, "full").label == label
        assert experiment.find(changed).startswith("Contradicted" if power == -0.2 else "Not contradicted")


def test_one_scalar_that_does_as_well_refutes_the_mixture(tiny: dict[str, Results]) -> None:
    def value(panel: Panel, one: Series, x: float, old: float) -> float:
        return -5.0 if one.label in ("adapted gates", "one expert, one adapted scalar", "oracle gates") else 0.0

    verdict = find("experts").verdict(_changed(_tiny("experts", tiny), value), "full")
    assert verdict.parts == {
        "gates adapt to what no head was trained on": True,
        "it takes several experts": False,
    }


def test_one_length_does_not_stand_for_all(tiny: dict[str, Results]) -> None:
    """What does best after 20 examples and badly after fewer gains nothing, and is not close to least squares."""

    def value(panel: Panel, one: Series, x: float, old: float) -> float:
        if "LFOM" not in one.label:
            return 0.0
        return 1e4 * (15 - x) if "alone" not in one.label else 0.0

    verdict = find("prompt-lengths").verdict(_changed(_tiny("prompt-lengths", tiny), value), "full")
    assert verdict.label == "reproduced in part"
    assert [part for part, holds in verdict.parts.items() if holds] == [
        "no worse at the longest prompt, Bm = 0",
        "no worse at the longest prompt, Bm free",
        "every example lowers the error",
    ]


def test_errors_at_the_floor_are_least_squares(tiny: dict[str, Results]) -> None:
    """Without noise least squares is exact from d examples on, and before it has missed what the examples leave out."""
    exact = _tiny("prompt-lengths", tiny)["share"]["least squares"]
    assert [exact.mean(x) for x in exact.x[1:]] == pytest.approx([1e-4] * 4)
    assert exact.mean(1) == pytest.approx(0.8, abs=0.15)


def test_being_ahead_on_short_prompts_is_not_being_right_on_long_ones(tiny: dict[str, Results]) -> None:
    def value(panel: Panel, one: Series, x: float, old: float) -> float:
        return 50.0 - x / 10 if "LFOM" in one.label else 100.0

    verdict = find("classification").verdict(_changed(_tiny("classification", tiny), value), "full")
    assert verdict.label == "reproduced in part"
    assert verdict.parts["ahead of classical classifiers on short prompts"] is True
    assert list(verdict.parts.values()).count(False) == 2


def test_what_is_decided_by_construction_is_decided_at_any_scale(tiny: dict[str, Results]) -> None:
    assert find("newton").verdict(_tiny("newton", tiny), "full").label == "reproduced"
    assert find("adaptive").verdict(_tiny("adaptive", tiny), "full").parts == {
        "with coefficients that follow the task": True,
        "with fixed coefficients": False,
    }


def test_a_block_that_only_matches_gd_adds_nothing_with_bm_free(tiny: dict[str, Results]) -> None:
    """GD++ is ahead of CGD by itself, so that being so shows nothing of a block; being ahead of first order does."""

    def value(panel: Panel, one: Series, x: float, old: float) -> float:
        if panel.name.startswith("block"):
            return 0.0 if one.label in ("CGD", "Newton") else -9.0
        return {"Bm = 0": -1.0, "CGD": -2.0}.get(one.label, -1.5 if "feed-forward" in one.label else 0.0)

    verdict = find("feed-forward").verdict(_changed(_tiny("feed-forward", tiny), value), "full")
    assert verdict.parts == {
        "with Bm = 0 it does better than without a block": True,
        "with Bm = 0 it does better than conjugate gradients": False,
        "with Bm free it does better than without a block": False,
    }


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=NAMES)
def test_texts_are_whole(experiment: Experiment) -> None:
    for text in (experiment.claim, experiment.protocol):
        assert text.endswith(".")
        assert "  " not in text
    assert experiment.title
    assert experiment.source

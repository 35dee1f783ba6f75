"""How right is right: error budgets from a twin, and the cases they are measured on.

No tolerance here is a matter of taste. A backend's float32 error against the float64 reference may be at most twice
that of its twin (three times for gradients), the worst of the literal, re-associated and Gram forms in plain float32
PyTorch on the same inputs; a float64 result agrees to 1e-10.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from memformer_kernels import reference
from memformer_kernels.calls.checks import Algorithm, Backend
from memformer_kernels.functional import memformer_predict, memformer_stack

OUTPUT_FACTOR = 2.0
GRADIENT_FACTOR = 3.0
FLOAT64_ERROR = 1e-10


def relative_error(value: Tensor, exact: Tensor) -> float:
    """||value - exact|| / ||exact|| over all entries, in float64; the plain norm of the difference where exact is 0."""
    difference = float((value.double() - exact.double()).norm())
    scale = float(exact.double().norm())
    return difference / scale if scale > 0 else difference


@dataclass(frozen=True)
class Case:
    """The arguments of a network, and the target that makes a loss of its predictions."""

    z: Tensor
    q: Tensor
    p: Tensor | None = None
    gamma: Tensor | None = None
    beta: Tensor | None = None
    gate: Tensor | None = None
    context: int | Tensor | None = None
    queries: int | None = None
    target: Tensor | None = None
    responses: int = 1
    weights: Tensor | None = None

    def to(self, dtype: torch.dtype) -> "Case":
        """The same case with every floating tensor in `dtype`, as leaves that need gradients."""
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor) and value.is_floating_point():
                changed[field.name] = value.detach().to(dtype).requires_grad_(field.name != "target")
        return replace(self, **changed)

    def shuffled(self, seed: int) -> "Case":
        """The same tasks in another order."""
        generator = torch.Generator("cpu").manual_seed(seed)
        order = torch.randperm(len(self.z), generator=generator, device="cpu", dtype=torch.int64).to(self.z.device)
        target = None if self.target is None else self.target.detach()[order]
        context = self.context[order] if isinstance(self.context, Tensor) else self.context
        weights = None if self.weights is None else self.weights.detach()[order]
        return replace(self, z=self.z.detach()[order], target=target, context=context, weights=weights)

    @property
    def parameters(self) -> tuple[Tensor | None, ...]:
        return self.p, self.gamma, self.beta, self.gate

    @property
    def options(self) -> dict[str, Any]:
        """What a stack and a prediction are told about the tokens."""
        return {"context": self.context, "responses": self.responses, "weights": self.weights}

    @property
    def token_axis(self) -> bool:
        """Whether gamma or beta varies from token to token, which the Gram form cannot express."""
        return any(x is not None and x.ndim >= 2 and x.shape[-2] != 1 for x in (self.gamma, self.beta))


Implementation = Callable[[Case], tuple[Tensor, Tensor]]
"""From a case to its tokens Z_L (B, N, D) and its predictions after every layer, (L, B, queries), with a last axis for
several responses."""


def public(backend: Backend = "auto", algorithm: Algorithm = "auto") -> Implementation:
    """The package's own functions."""

    def run(case: Case) -> tuple[Tensor, Tensor]:
        z, q, parameters = case.z, case.q, case.parameters
        options = {**case.options, "backend": backend, "algorithm": algorithm}
        tokens = memformer_stack(z, q, *parameters, **options)
        predictions = memformer_predict(z, q, *parameters, queries=case.queries, layers=True, **options)
        return tokens, predictions

    return run


def in_form(form: str) -> Implementation:
    """A reference form: literal, reassociated or gram."""

    def run(case: Case) -> tuple[Tensor, Tensor]:
        z, q, parameters = case.z, case.q, case.parameters
        options = {**case.options, "form": form}
        tokens = reference.stack(z, q, *parameters, **options)
        predictions = reference.predict(z, q, *parameters, queries=case.queries, **options)
        return tokens, predictions

    return run


def results(implementation: Implementation, case: Case) -> dict[str, Tensor]:
    """Tokens, predictions, and the gradients of a fixed scalar of both (the loss, where the case has a target)."""
    tokens, predictions = implementation(case)
    if case.target is not None:
        scalar = (predictions[-1] - case.target).square().mean()
    else:
        scalar = _weighted(tokens) + _weighted(predictions)
    names = ("z", "q", "p", "gamma", "beta", "gate", "weights")
    leaves = {name: getattr(case, name) for name in names if getattr(case, name) is not None}
    grads = torch.autograd.grad(scalar, list(leaves.values()), allow_unused=True)
    made = {"tokens": tokens.detach(), "predictions": predictions.detach()}
    for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
        made[f"grad_{name}"] = torch.zeros_like(leaf) if grad is None else grad
    return made


def _weighted(values: Tensor) -> Tensor:
    """A scalar to which every entry contributes differently, the same in every dtype."""
    weights = torch.arange(values.numel(), dtype=torch.float64, device=values.device).mul(0.7).cos()
    return (values * weights.view(values.shape).to(values.dtype)).sum() / max(values.shape[0], 1)


def twin_errors(case: Case, exact: dict[str, Tensor], orders: int = 1) -> dict[str, float]:
    """The worst relative float32 error of the literal, re-associated and Gram forms: name -> error.

    exact: results of the literal form in float64. orders: so many orders of the tasks. What a sum of a few numbers errs
    by is chance, which another order draws again.
    """
    forms = ("literal", "reassociated") if case.token_axis else ("literal", "reassociated", "gram")
    worst = dict.fromkeys(exact, 0.0)
    for order in range(orders):
        shuffled = case.shuffled(order) if order else case
        values = results(in_form("literal"), shuffled.to(torch.float64)) if order else exact
        for form in forms:
            made = results(in_form(form), shuffled.to(torch.float32))
            worst = {name: max(error, relative_error(made[name], values[name])) for name, error in worst.items()}
    return worst


def twin_violations(implementation: Implementation, case: Case, orders: int = 1) -> dict[str, tuple[float, float]]:
    """Results whose float32 error exceeds the budget: name -> (error, budget). Empty when all is right.

    orders: of `twin_errors`; one for a thousand tasks, several for a few.
    """
    exact = results(in_form("literal"), case.to(torch.float64))
    twin = twin_errors(case, exact, orders)
    ours = results(implementation, case.to(torch.float32))
    violations = {}
    for name, value in exact.items():
        factor = GRADIENT_FACTOR if name.startswith("grad_") else OUTPUT_FACTOR
        budget = factor * max(twin[name], torch.finfo(torch.float32).eps)
        error = relative_error(ours[name], value)
        if not error <= budget:
            violations[name] = (error, budget)
    return violations


def float64_violations(implementation: Implementation, case: Case) -> dict[str, float]:
    """Results in float64 that differ from the literal reference by more than 1e-10: name -> error."""
    double = case.to(torch.float64)
    exact, ours = results(in_form("literal"), double), results(implementation, double)
    errors = {name: relative_error(ours[name], value) for name, value in exact.items()}
    return {name: error for name, error in errors.items() if not error <= FLOAT64_ERROR}

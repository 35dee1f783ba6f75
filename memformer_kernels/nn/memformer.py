"""A whole Memformer by the name of its rule."""

from collections.abc import Mapping
from typing import Literal, TypedDict, get_args

import torch
from torch import Tensor, nn

from memformer_kernels.calls.checks import (
    ALGORITHMS,
    BACKENDS,
    Algorithm,
    Backend,
    check_choice,
    check_dtype,
    check_flag,
    check_size,
    reject,
    same_in_all,
)
from memformer_kernels.functional import (
    memformer_loss,
    memformer_predict,
    memformer_prefix_loss,
    memformer_prefix_predict,
    memformer_stack,
)
from memformer_kernels.nn.parameters import (
    GRANULARITIES,
    STRUCTURES,
    Granularity,
    Structure,
    coefficient_shape,
    empty_parameters,
    projection_shapes,
    start_projections,
    tokens_of,
)
from memformer_kernels.torch_internals import copy_all
from memformer_kernels.torch_ops.sharding import fill, on_every_process

Rule = Literal["linear", "cgd", "recursive", "lfom", "lfom_shared", "lfom_residual", "gated_heads"]

RULES: tuple[Rule, ...] = get_args(Rule)
"""The published models, by what memory does.

linear: none (preconditioned gradient descent; GD++ with block structure). cgd: R_l = att + beta_l R_{l-1}, layer l adds
alpha_l R_l (Dutta & Sra, arXiv 2410.07263, eqs. 17-18). recursive: the same with a Hadamard beta. lfom: layer l adds
sum_{j<=l} gamma_{l,j} * R_j (eqs. 19-20); lfom_shared: one gamma_j for every layer; lfom_residual: 1 for the new
register, gamma_{l,j} for the past ones. gated_heads: a mixture of experts, lfom_residual for each head, with one gate a
head.
"""

_DEFAULT_GRANULARITY: dict[str, Granularity] = {"cgd": "scalar", "recursive": "full"}
_RESIDUAL = ("lfom_residual", "gated_heads")


class StackArguments(TypedDict):
    """A network's parameters as the functions of `memformer_kernels.functional` take them."""

    q: Tensor
    p: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    gate: Tensor | None


def _of_new_registers(gamma: Tensor) -> Tensor:
    """Where gamma (L, L, ...) weights a layer's new register: bool that broadcasts to it."""
    own = torch.eye(gamma.shape[0], dtype=torch.bool, device=gamma.device)[:, :, None, None, None]
    return on_every_process(own, gamma)


def residual_gamma(gamma: Tensor) -> Tensor:
    """gamma (L, L, ...) of a residual rule with the fixed 1 of every layer's new register."""
    return torch.where(_of_new_registers(gamma), 1.0, gamma)


# Leaves of torch.fx.symbolic_trace: their checks ask for what is no graph of operations.
torch.fx.wrap("memformer_loss")
torch.fx.wrap("memformer_predict")
torch.fx.wrap("memformer_stack")
torch.fx.wrap("residual_gamma")
torch.fx.wrap("tokens_of")


class Memformer(nn.Module):
    """L layers of memory-augmented linear attention on tasks z (B, N, d + m), of m responses.

    Parameters start near gradient descent without memory: q near -I/2 (divided among heads), gamma the identity
    (lfom_shared: 1/L), beta 0; the noise is drawn from torch's default generator.

    Args:
        d: features of a token.
        layers: L.
        responses: m. All share the attention; above 1 torch serves the calls.
        heads: H.
        rule: one of `RULES`: what the memory does.
        granularity: what gamma or beta varies over: "scalar", "feature" (D = d + m, so that each response has a
            coefficient of its own), "token" (N) or "full" (N, D); None takes the rule's own (cgd: scalar, recursive:
            full, else feature). With "scalar" and structure other than "dense", parameters do not depend on m.
        structure: "response-only" (features stay as they are), "block" (GD++: P and Q have blocks, features are
            transformed too) or "dense" (any P and Q).
        tied: whether all layers have the same q and p, held once, so that the network is one layer in a loop; gamma and
            beta are each layer's own.
        tokens: N, needed by token and full granularity.
        backend: as in `memformer_predict`.
        algorithm: as in `memformer_predict`.
        device: of the parameters; None: torch's default.
        dtype: of the parameters; None: torch's default.

    Raises:
        ValueError: an unknown name, a size below 1 or missing `tokens`.
        TypeError: a size that is no int, or a `tied` that is no bool.

    Example:
        >>> model = Memformer(d=5, layers=4)
        >>> model.loss(torch.randn(8, 21, 6), torch.randn(8, 1)).backward()
    """

    q: nn.Parameter
    p: nn.Parameter | None
    gamma: nn.Parameter | None
    beta: nn.Parameter | None
    gate: nn.Parameter | None

    def __init__(
        self,
        d: int,
        layers: int,
        *,
        responses: int = 1,
        heads: int = 1,
        rule: Rule = "lfom",
        granularity: Granularity | None = None,
        structure: Structure = "response-only",
        tied: bool = False,
        tokens: int | None = None,
        backend: Backend = "auto",
        algorithm: Algorithm = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        d, layers, heads = check_size("d", d), check_size("layers", layers), check_size("heads", heads)
        self.d, self.layers, self.heads = d, layers, heads
        self.responses = check_size("responses", responses)
        self.tokens = None if tokens is None else check_size("tokens", tokens)
        self.rule = check_choice("rule", rule, RULES)
        self.structure = check_choice("structure", structure, STRUCTURES)
        default = _DEFAULT_GRANULARITY.get(rule, "feature")
        self.granularity = check_choice("granularity", default if granularity is None else granularity, GRANULARITIES)
        self.tied = check_flag("tied", tied)
        self.backend = check_choice("backend", backend, BACKENDS)
        self.algorithm = check_choice("algorithm", algorithm, ALGORITHMS)
        check_dtype("dtype", dtype)
        shapes = self._projection_shapes() | self._memory_shapes()
        sizes = {"d": d, "layers": layers, "heads": heads, "responses": self.responses, "tokens": self.tokens or 0}
        made = empty_parameters(sizes, shapes, device=device, dtype=dtype)
        self.q, self.p = made["q"], made.get("p")
        self.gamma, self.beta, self.gate = made.get("gamma"), made.get("beta"), made.get("gate")
        self.reset_parameters()

    def _projection_shapes(self) -> dict[str, tuple[int, ...]]:
        lead = (1 if self.tied else self.layers, self.heads)
        return projection_shapes(lead, self.d, self.structure, self.responses)

    def _memory_shapes(self) -> dict[str, tuple[int, ...]]:
        layers, heads = self.layers, self.heads
        if self.rule == "linear":
            return {}
        grid = coefficient_shape(self.granularity, self.d + self.responses, self.tokens)
        if self.rule in ("cgd", "recursive"):
            return {"gamma": (layers, 1, 1, 1), "beta": (layers, 1, *grid)}
        if self.rule == "lfom_shared":
            return {"gamma": (1, layers, 1, *grid)}
        if self.rule == "gated_heads":
            return {"gamma": (layers, layers, heads, *grid), "gate": (heads,)}
        return {"gamma": (layers, layers, 1, *grid)}

    def reset_parameters(self) -> None:
        """Draws q and p again from torch's default generator and starts the memory as if there were none."""
        start_projections(self.q, self.p, self.structure, self.responses)
        with torch.no_grad():
            if self.beta is not None:
                self.beta.zero_()
            if self.gate is not None:
                self.gate.fill_(1.0)
            if self.gamma is not None:
                self.gamma.fill_({"cgd": 1.0, "recursive": 1.0, "lfom_shared": 1.0 / self.layers}.get(self.rule, 0.0))
            if self.gamma is not None and self.rule == "lfom":
                own = torch.eye(self.layers, dtype=self.gamma.dtype, device=self.gamma.device)
                fill(self.gamma, own[:, :, None, None, None].expand(self.gamma.shape).contiguous())

    def stack_arguments(self) -> StackArguments:
        """The parameters as the functions take them.

        Residual rules get their fixed 1 for the new register here, and tied layers the q and p that they share, without
        copies.
        """
        gamma: Tensor | None = self.gamma
        if gamma is not None and self.rule in _RESIDUAL:
            gamma = residual_gamma(gamma)
        q, p = self._of_each_layer(self.q), None if self.p is None else self._of_each_layer(self.p)
        return {"q": q, "p": p, "gamma": gamma, "beta": self.beta, "gate": self.gate}

    def _of_each_layer(self, matrices: Tensor) -> Tensor:
        """q or p (L, H, ...) of the one that the module holds."""
        return matrices.expand(self.layers, *matrices.shape[1:]) if self.tied else matrices

    def trainable_entries(self) -> dict[str, Tensor]:
        """By name of a parameter, bool of its shape: the entries that training may change.

        Those are all of a parameter that requires a gradient but the new register's weight under residual rules.
        """
        entries = {
            name: torch.full(value.shape, value.requires_grad, dtype=torch.bool, device=value.device)
            for name, value in self.named_parameters(recurse=False)
        }
        if self.gamma is not None and self.rule in _RESIDUAL:
            entries["gamma"] &= ~_of_new_registers(self.gamma)
        return entries

    def load_arguments(self, arguments: Mapping[str, Tensor]) -> None:
        """Copies parameters, named and shaped as those of `stack_arguments`, into the module's own.

        Args:
            arguments: "q" and those of "p", "gamma", "beta" and "gate" that the module has.

        Raises:
            ValueError: other names or shapes, another weight of the new register than the rule's, or layers that differ
                where they are tied; nothing has changed then.
        """
        own = dict(self.named_parameters(recurse=False))
        if arguments.keys() != own.keys():
            reject("arguments", list(arguments), f"{', '.join(own)}")
        read = {name: value for name, value in self.stack_arguments().items() if isinstance(value, Tensor)}
        for name, value in arguments.items():
            if value.shape != read[name].shape:
                reject(f"arguments[{name!r}]", value, f"a tensor of shape {tuple(read[name].shape)}")
        if self.rule in _RESIDUAL and not torch.equal(residual_gamma(arguments["gamma"]), arguments["gamma"]):
            reject("arguments['gamma']", "another weight of a layer's new register", "1, which the rule fixes")
        for name in ("q", "p") if self.tied else ():
            if name in arguments and not same_in_all(arguments[name]):
                reject(f"arguments[{name!r}]", "layers that differ", "the same in every layer, since they are tied")
        given = {name: value[: own[name].shape[0]] for name, value in arguments.items()}
        with torch.no_grad():
            # One call of torch, which no signal handler cuts in two.
            copy_all([own[name] for name in given], list(given.values()))

    def forward(self, z: Tensor, *, context: int | Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Z_L (B, N, d + m); `weights` (B, N) of the context's tokens are those of `memformer_stack`."""
        return memformer_stack(
            tokens_of(z, self.d, self.responses),
            **self.stack_arguments(),
            context=context,
            responses=self.responses,
            weights=weights,
            backend=self.backend,
            algorithm=self.algorithm,
        )

    def predict(
        self,
        z: Tensor,
        *,
        context: int | Tensor | None = None,
        queries: int | None = None,
        layers: bool = False,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Predictions of the last `queries` tokens, (B, queries), or after each layer, (L, B, queries).

        Several responses are a last axis m.
        """
        return memformer_predict(
            tokens_of(z, self.d, self.responses),
            **self.stack_arguments(),
            context=context,
            queries=queries,
            layers=layers,
            responses=self.responses,
            weights=weights,
            backend=self.backend,
            algorithm=self.algorithm,
        )

    def loss(
        self,
        z: Tensor,
        target: Tensor,
        *,
        context: int | Tensor | None = None,
        queries: int | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Mean squared error of the predictions against `target` (B, queries), or (B, queries, m) for m > 1."""
        return memformer_loss(
            tokens_of(z, self.d, self.responses),
            target,
            **self.stack_arguments(),
            context=context,
            queries=queries,
            responses=self.responses,
            weights=weights,
            backend=self.backend,
            algorithm=self.algorithm,
        )

    def prefix_predict(self, z: Tensor, *, first: int = 1, layers: bool = False) -> Tensor:
        """Predictions of tokens first, ..., N - 1, each from all tokens before it: (B, N - first), or one a layer.

        Of one response; see `memformer_prefix_predict`.
        """
        tokens = self._tokens_of_one_response(z)
        return memformer_prefix_predict(
            tokens, **self.stack_arguments(), first=first, layers=layers, backend=self.backend
        )

    def prefix_loss(self, z: Tensor, target: Tensor, *, first: int = 1) -> Tensor:
        """Mean squared error of the predictions of every prefix against `target` (B, N - first). Of one response."""
        tokens = self._tokens_of_one_response(z)
        return memformer_prefix_loss(tokens, target, **self.stack_arguments(), first=first, backend=self.backend)

    def _tokens_of_one_response(self, z: Tensor) -> Tensor:
        if self.responses != 1:
            reject("responses", self.responses, "1: every prefix predicts one response")
        return tokens_of(z, self.d, 1)

    def extra_repr(self) -> str:
        parts = (
            f"d={self.d}, layers={self.layers}, heads={self.heads}, rule={self.rule!r}, structure={self.structure!r}"
        )
        parts = f"{parts}, tied=True" if self.tied else parts
        parts = parts if self.responses == 1 else f"{parts}, responses={self.responses}"
        return parts if self.rule == "linear" else f"{parts}, granularity={self.granularity!r}"

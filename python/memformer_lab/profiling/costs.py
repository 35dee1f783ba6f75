"""Bytes and multiply-adds of one task through a Memformer, by the cheapest method the package knows.

Counts follow the recurrences of the Gram form (Z_l = Z_0 T_l) and of the token form. A product of matrices costs its
multiply-adds once; its backward pass costs two such products where both factors need a gradient. The first layer's
products with the identity are not counted. Heads of a response-only model whose memory they share collapse to one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Operations(NamedTuple):
    """Multiply-adds of one task: forming the context Gram matrix, the forward pass, the backward pass."""

    gram: int
    forward: int
    backward: int

    @property
    def total(self) -> int:
        return self.gram + self.forward + self.backward


@dataclass(frozen=True)
class Network:
    """What the counts depend on.

    Attributes:
        d: features.
        n: labelled tokens.
        queries: tokens that are predicted.
        layers: L.
        heads: H, counted apart only where memory differs from head to head or features move.
        structure: response-only, block or dense.
        weighted: pairs (l, j) of a layer and a register with a coefficient: 0 without memory, L for one weight a layer,
            L (L + 1) / 2 for all past registers.
        decayed: layers whose register keeps beta times the last one.
        token_space: whether tokens are updated one by one, as a coefficient for every token demands.
    """

    d: int
    n: int
    queries: int
    layers: int
    heads: int
    structure: str
    weighted: int
    decayed: int
    token_space: bool

    @property
    def tokens(self) -> int:
        return self.n + self.queries

    @property
    def width(self) -> int:
        return self.d + 1

    def bytes_per_task(self, item: int, training: bool) -> int:
        """Tokens of `item` bytes a number read once; targets read by training, or predictions written."""
        return (
            (self.tokens * self.width + self.queries) * item
            if training
            else (self.tokens * self.width * item + self.queries * max(item, 4))
        )

    def operations(self, training: bool) -> Operations:
        """Multiply-adds of one task; without training the backward pass costs nothing."""
        if self.structure == "response-only":
            found = self._response_tokens() if self.token_space else self._response_gram()
        else:
            found = self._general_tokens() if self.token_space else self._general_gram()
        return found if training else Operations(found.gram, found.forward, 0)

    @property
    def token_gradient(self) -> int:
        """Multiply-adds that the gradient in the tokens adds to a backward pass to the parameters."""
        d, n, layers = self.d, self.n, self.layers
        if self.structure != "response-only":
            # The adjoint of G is one of the factors' gradients already; tokens moved one by one have all theirs.
            return 0 if self.token_space else n * self.width**2 + self.queries * self.width
        if self.token_space:
            # X is a factor of every b_l and every register; the first b's other factor is the tokens' y.
            return layers * n * d + (layers - 1) * self.tokens * d + self.queries * d + n * d
        # The adjoint of H, an outer product a layer after the first; X times it, y times b's adjoint, X times b's.
        return (layers - 1) * d * d + n * (d * d + 2 * d) + self.queries * d

    def _response_gram(self) -> Operations:
        """On H (symmetric), b and w: g_l = b - H w_l, r_l = -A_l g_l + beta_l r_{l-1}, w += sum_j gamma_lj r_j."""
        d, layers = self.d, self.layers
        gram = self.n * (d * (d + 1) // 2 + d)
        products = layers * d * d + (layers - 1) * d * d
        forward = products + (self.weighted + self.decayed) * d + self.queries * d
        # Each weighted pair gives its coefficient's gradient and its register's adjoint; each layer A's gradient and
        # the adjoints of its products, H's only after layer 0, where w_l depends on a parameter.
        backward = products + layers * d * d + 2 * (self.weighted + self.decayed) * d + self.queries * d
        return Operations(gram, forward, backward)

    def _response_tokens(self) -> Operations:
        """On the fixed features X (N, d) and the response column y (N): b_l = X^T y / n over the context,
        r_l = X A_l b_l + beta_l * r_{l-1}, y += sum_j gamma_lj * r_j. The last layer need only reach the queries.
        """
        d, n, rows, layers = self.d, self.n, self.tokens, self.layers
        last = layers if self.weighted > layers else min(self.weighted, 1)
        updates = (self.weighted - last) * rows + last * self.queries + self.decayed * rows
        registers = (layers - 1) * rows * d + self.queries * d
        forward = layers * (n * d + d * d) + registers + updates
        backward = 2 * updates + registers + 2 * layers * d * d + (layers - 1) * n * d
        return Operations(0, forward, backward)

    def _general_gram(self) -> Operations:
        """T_0 = I, G_l = T_l^T G_0 T_l, S_{l,h} = T_l Q_h G_l P_h^T / n + S_{l-1,h} * beta, T += sum_j S_j * gamma."""
        d, layers, heads = self.d, self.layers, self.heads
        block = self.structure == "block"
        side = d if block else self.width
        cells = side * side + (side if block else 0)
        gram = self.n * (self.width * (self.width + 1) // 2)
        # X^T H X; for each head X A, its product with H and that with Bm^T; in a block also X^T (b - H w) and (X A) g.
        first = heads * (2 * side**3 + (side**2 if block else 0))
        later = 2 * side**3 + heads * 3 * side**3 + ((2 + heads) * side**2 if block else 0)
        memory = (self.weighted + self.decayed) * cells
        products = first + (layers - 1) * later
        return Operations(gram, products + memory + self.queries * side, 2 * (products + memory) + self.queries * side)

    def _general_tokens(self) -> Operations:
        """G = sum over the context of z z^T, W = sum_h Q_h G P_h^T / n, R = Z W + beta R, Z += sum_j gamma_j R_j."""
        side = self.d if self.structure == "block" else self.width
        rows, layers, heads = self.tokens, self.layers, self.heads
        gram = self.n * (self.width * (self.width + 1) // 2)
        layer = gram + heads * 2 * side**3 + rows * side * self.width
        memory = (self.weighted + self.decayed) * rows * self.width
        return Operations(0, layers * layer + memory, 2 * (layers * layer + memory))

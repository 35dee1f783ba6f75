"""A byte-level language model on Python's own documentation: a standard Transformer, and the same with register memory.

    python -m examples.language_model

The text is that of `help()` (pydoc_data.topics), which ships with Python; nothing is downloaded. The blocks are
ordinary ones, softmax attention and an MLP; `RegisterMemory` goes around them, starts as no memory and adds one
coefficient per feature and pair of layers. Both models start from the same parameters and see the same batches.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.curves import RESULTS, draw
from memformer_kernels.nn import RegisterMemory


class Block(nn.Module):
    """A standard pre-norm Transformer block: causal softmax attention, then an MLP, each added to its input."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, z: Tensor) -> Tensor:
        q, k, v = self.qkv(self.attention_norm(z)).unflatten(-1, (3 * self.heads, -1)).transpose(1, 2).chunk(3, 1)
        z = z + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        made: Tensor = z + self.mlp(self.mlp_norm(z))
        return made


class LanguageModel(nn.Module):
    """Next-byte logits (B, N, 256) of bytes (B, N). The blocks know nothing of the memory around them."""

    def __init__(self, dim: int, layers: int, heads: int, length: int, memory: str) -> None:
        super().__init__()
        self.embedding, self.place = nn.Embedding(256, dim), nn.Parameter(torch.randn(length, dim))
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 256)
        self.memory = RegisterMemory(dim, layers, memory=memory)

    def forward(self, text: Tensor) -> Tensor:
        z = self.embedding(text) + self.place[: text.shape[1]]
        made: Tensor = self.head(self.norm(self.memory.run(self.blocks, z)))
        return made

    def loss(self, text: Tensor) -> Tensor:
        """Mean negative log-likelihood of every byte after the first, in nats."""
        return F.cross_entropy(self(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())


def corpus() -> tuple[Tensor, Tensor]:
    """The documentation as bytes: nine tenths to train on, one to judge by."""
    text = "\n".join(topics[name] for name in sorted(topics)).encode()
    whole = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    split = len(whole) * 9 // 10
    return whole[:split], whole[split:]


def batch(text: Tensor, size: int, length: int, generator: torch.Generator) -> Tensor:
    """Random pieces of text (size, length + 1)."""
    starts = torch.randint(len(text) - length - 1, (size, 1), generator=generator)
    return text[starts + torch.arange(length + 1)]


def train(memory: str, settings: argparse.Namespace) -> tuple[list[int], list[float], float]:
    """Steps, the losses on held-out text at them, and seconds."""
    torch.manual_seed(settings.seed)
    model = LanguageModel(settings.dim, settings.layers, settings.heads, settings.length, memory)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=settings.steps)
    training, held_out = corpus()
    generator = torch.Generator().manual_seed(settings.seed)
    judged = batch(held_out, 64, settings.length, torch.Generator().manual_seed(1))
    steps: list[int] = []
    losses: list[float] = []
    begun = time.perf_counter()
    for step in range(settings.steps + 1):
        if step % max(1, settings.steps // 15) == 0 or step == settings.steps:
            with torch.no_grad():
                steps.append(step)
                losses.append(model.loss(judged).item())
            print(f"{memory:>6}  step {step:4d}  held-out loss {losses[-1]:.3f}", flush=True)
        if step < settings.steps:
            loss = model.loss(batch(training, settings.batch, settings.length, generator))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return steps, losses, time.perf_counter() - begun


def main(arguments: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Trains both models and draws their curves; the held-out losses by model."""
    parser = argparse.ArgumentParser(description="A byte-level language model with and without register memory.")
    parser.add_argument("--steps", type=int, default=900, help="optimiser steps of each model")
    parser.add_argument("--batch", type=int, default=16, help="pieces of text a step")
    parser.add_argument("--length", type=int, default=64, help="bytes of a piece")
    parser.add_argument("--dim", type=int, default=64, help="width of the tokens")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path, default=RESULTS / "language_model.png")
    settings = parser.parse_args(arguments)
    curves = {}
    for name, memory in (("standard blocks", "none"), ("with register memory", "lfom")):
        steps, losses, seconds = train(memory, settings)
        print(f"{name}: held-out loss {losses[-1]:.3f} nats a byte after {settings.steps} steps, {seconds:.0f} s")
        curves[name] = steps, losses
    draw(settings.figure, curves, "Bytes of Python's documentation", "held-out loss, nats a byte")
    print(f"figure: {settings.figure}")
    return {name: losses for name, (_, losses) in curves.items()}


if __name__ == "__main__":
    main()

"""Seeds for separate random streams."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

Purpose = Literal["initialisation", "training", "evaluation", "bootstrap", "real data"]


def seed_for(purpose: Purpose, seed: int, index: int = 0) -> int:
    """A 64-bit seed for one purpose, so that streams of different purposes or indices never coincide by design.

    Args:
        purpose: what is drawn; training and evaluation hence never see the same tasks.
        seed: the run's seed, >= 0.
        index: which of several streams of this purpose, >= 0.
    """
    sequence = np.random.SeedSequence([seed, *purpose.encode()], spawn_key=(index,))
    return int(sequence.generate_state(1, np.uint64)[0])


def generator_for(purpose: Purpose, seed: int, index: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device`, seeded by `seed_for`."""
    return torch.Generator(device=device).manual_seed(seed_for(purpose, seed, index))

"""Seeds: one number, from which everything random in a training follows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

ENVIRONMENT = "nnUNet_ext_seed"
# Purposes; folds have the low numbers.
LOADING = 100
BOXES, BCP_STEPS, TURNS = 200, 201, 202  # what is drawn in steps
LOOKED_AT, LOCATIONS = 300, 301  # the order of unlabelled cases, and voxels of classes in them


def base_seed() -> int:
    """Return the seed of the environment variable ``nnUNet_ext_seed``, 0 if it is not set.

    Raises:
        ValueError: If it is not a non-negative integer.
    """
    text = os.environ.get(ENVIRONMENT, "0")
    if not text.isdigit():
        raise ValueError(f"the environment variable {ENVIRONMENT} must be a non-negative integer, got {text!r}")
    return int(text)


def derived_seed(seed: int, *purpose: int) -> int:
    """Return a 32-bit seed for one purpose; different purposes give unrelated streams.

    Args:
        seed: Base of all seeds.
        purpose: Numbers that name the purpose, e.g. fold and network.
    """
    return int(np.random.SeedSequence([seed, *purpose]).generate_state(1)[0])


@contextmanager
def torch_seed(seed: int) -> Iterator[None]:
    """Draw from ``seed`` inside the block on the CPU, and leave that stream as it was, and those of other devices."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every device, for good
    try:
        yield
    finally:
        torch.set_rng_state(state)


def seed_everything(seed: int) -> None:
    """Seed the global generators of numpy and torch, which augmentation draws from."""
    np.random.seed(seed)
    torch.manual_seed(seed)

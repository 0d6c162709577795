"""Masks of a few slices carried to all others of a volume: references, the memory, and what drives a network."""

from nnunet_ext.propagation.driver import NoReferenceError, Propagated, PropagationSettings, propagate, suggest
from nnunet_ext.propagation.memory import Memory
from nnunet_ext.propagation.references import choose, largest_slices, sampled_slices

__all__ = [
    "Memory",
    "NoReferenceError",
    "Propagated",
    "PropagationSettings",
    "choose",
    "largest_slices",
    "propagate",
    "sampled_slices",
    "suggest",
]

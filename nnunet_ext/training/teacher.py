"""A teacher: the running mean of a network's weights.

Tarvainen and Valpola, "Mean teachers are better role models: Weight-averaged consistency targets improve
semi-supervised deep learning results" (NeurIPS 2017), section 2. The first update copies, and the early teacher is the
plain mean, so that the random initialisation counts nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.training.checkpoints import plain_module

_WINDOW = 0.02  # share of the training that the mean goes back
_LEAST, _MOST = 0.99, 0.9995
_HALF = (torch.float16, torch.bfloat16)


def ema_decay(step: int, decay: float) -> float:
    """Return what the teacher's weights are multiplied by after a step: ``min(decay, 1 - 1 / (step + 1))``.

    Args:
        step: Number of the step, from 0.
        decay: Highest value, which the running mean ends with.
    """
    return min(decay, 1 - 1 / (step + 1))


def decay_for_length(steps: int) -> float:
    """Return the decay for a training: its mean goes back over 2 % of the steps, within 0.99 and 0.9995.

    Args:
        steps: Length of the training, epochs times iterations.
    """
    return min(max(1 - 1 / (_WINDOW * max(steps, 1)), _LEAST), _MOST)


def check_decay(decay: float | None) -> None:
    """Refuse a decay of a running mean that makes no sense, by the name that trainers have for it.

    Raises:
        ValueError: If it is neither None nor from 0 to below 1.
    """
    if decay is not None and not 0 <= decay < 1:
        raise ValueError(f"ema_decay must be None or lie in [0, 1), got {decay}")


class Teacher:
    """An exponential moving average of a network, in float32, for inference: no gradient, no deep supervision.

    Its tensors stay where they are, so that a compiled teacher stays valid. Each process of DDP has its own, of equal
    weights.

    Args:
        network: The student; it may be compiled, or wrapped by DDP.
        decay: Of the running mean, from 0 to below 1; 0 copies at every step.

    Attributes:
        network: The teacher's network, without wrappers; ``network.compile()`` compiles it in place.
        decay: Of the running mean.
        t: Number of updates so far.

    Raises:
        ValueError: If the decay is out of range.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of a teacher must be 0 or more and below 1, got {decay}; pass e.g. 0.99")
        self.decay = decay
        self.t = 0
        self.network = deepcopy(plain_module(network))
        self.network.requires_grad_(False).eval()
        for tensor in _tensors(self.network):
            if tensor.dtype in _HALF:  # a step's share of the mean would be rounded away
                tensor.data = tensor.data.float()
        places: tuple[Any, Any] = (getattr(self.network, "decoder", None), self.network)
        for place in places:
            if hasattr(place, "deep_supervision"):
                place.deep_supervision = False

    @torch.no_grad()
    def __call__(self, data: Tensor) -> Tensor:
        """Return the output of the teacher, ``(B, K, *S)`` logits, without gradient."""
        output = self.network(data)
        return output[0] if isinstance(output, (list, tuple)) else output

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the student after a step of its optimiser, also where a scaler of gradients has skipped it.

        Args:
            network: The student.
        """
        own, new = list(_tensors(self.network)), list(_tensors(plain_module(network)))
        real = [(a, b.to(a.dtype)) for a, b in zip(own, new, strict=True) if a.is_floating_point()]
        whole = [(a, b) for a, b in zip(own, new, strict=True) if not a.is_floating_point()]
        _lerp([a for a, _ in real], [b for _, b in real], 1 - ema_decay(self.t, self.decay))
        for mean, number in whole:  # counters, such as that of batch norm
            mean.copy_(number)
        self.t += 1

    def restart(self) -> None:
        """Let the next update copy the student, whose weights have been replaced."""
        self.t = 0

    def begin_with(self, network: nn.Module) -> None:
        """Take the weights of a student that has new ones, and begin its mean anew.

        Args:
            network: The student.
        """
        self.restart()
        self.update(network)  # the first update copies
        self.restart()

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint: all weights, and the number of updates; the decay is a setting."""
        return {"network_weights": self.network.state_dict(), "t": self.t}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state, in place.

        Raises:
            RuntimeError: If the weights are those of another network; torch names them.
        """
        self.network.load_state_dict(state["network_weights"])
        self.t = int(state["t"])


def teacher_of(network: nn.Module, decay: float | None, steps: int) -> Teacher:
    """Return the teacher of a network.

    Args:
        network: The student.
        decay: Of the running mean; None takes that for the length of the training.
        steps: Length of the training, epochs times iterations.
    """
    return Teacher(network, decay_for_length(steps) if decay is None else decay)


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def _lerp(means: Sequence[Tensor], numbers: Sequence[Tensor], weight: float) -> None:
    """Move means towards numbers, in a few launches on a GPU."""
    if not means:
        return
    if hasattr(torch, "_foreach_lerp_"):
        torch._foreach_lerp_(list(means), list(numbers), weight)
    else:
        for mean, number in zip(means, numbers, strict=True):
            mean.lerp_(number, weight)

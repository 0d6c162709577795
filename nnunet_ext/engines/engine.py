"""What an engine is: a network, ready to run on windows of one shape, in one precision, on one device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

AUTO, TORCH, COMPILE, OPENVINO = "auto", "torch", "compile", "openvino"
ENGINES = (AUTO, TORCH, COMPILE, OPENVINO)
FLOAT32, BFLOAT16, FLOAT16 = "float32", "bfloat16", "float16"
PRECISIONS = (FLOAT32, BFLOAT16, FLOAT16)


class ConversionError(RuntimeError):
    """A network cannot be converted for an engine; the message names the operator, where it is known."""


@dataclass(frozen=True)
class EngineChoice:
    """An engine with its precision.

    Attributes:
        engine: ``"torch"``, ``"compile"`` or ``"openvino"``.
        precision: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        reason: Why it was chosen, for the user.
    """

    engine: str
    precision: str
    reason: str = ""

    def describe(self) -> str:
        """Return the choice as reports have it."""
        return f"{self.engine}, {self.precision}"


class Engine(Protocol):
    """A network that runs on batches of windows."""

    def run(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the logits of each batch, in order.

        A few batches may be under way at a time, so an engine may take more of them before it yields the first.

        Args:
            batches: Windows ``(N, C, *P)``, float32, on the device that the engine was made for.

        Yields:
            Logits ``(N, K, *P)`` on the same device, in a floating type of the engine's choice. They may be changed
            in place, and stay as they are when the next ones are made.
        """

    def load(self, weights: Mapping[str, Any]) -> None:
        """Go on with other weights, such as those of the next fold.

        Args:
            weights: State of a network of the same architecture; it must not be changed afterwards.

        Raises:
            ConversionError: If they cannot be converted; to be expected only from the first weights of a network.
        """

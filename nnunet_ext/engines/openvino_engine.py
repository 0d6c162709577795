"""Networks run by OpenVINO, on CPUs."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.engines.converted import ConvertedNetworks
from nnunet_ext.engines.runtime import openvino
from nnunet_ext.engines.trial import properties, streams

_MOST_STATES = 32  # folds whose weights are known by their object


class OpenVinoEngine:
    """Runs a network in OpenVINO, window by window.

    Args:
        network: Network of one output; it is left as it is.
        window: Channels and axes of each window, ``(C, *P)``.
        precision: ``"float32"`` or ``"bfloat16"``.
        folder: Where converted networks are kept; ``None`` for the user's cache.

    Raises:
        ConversionError: If the network cannot be converted, or gives another result than in torch.
    """

    def __init__(self, network: nn.Module, window: Sequence[int], precision: str, folder: Path | None = None) -> None:
        self.window, self.precision = tuple(window), precision
        self.converted = ConvertedNetworks(network, self.window, precision, folder)
        self._networks: dict[str, _Compiled] = {}
        # weights need no look at their values where they are an object that was seen before; a state that a network
        # has just made is always another one
        self._states: deque[tuple[Mapping[str, Any], _Compiled]] = deque(maxlen=_MOST_STATES)
        self._current = self._network_of(None)

    def load(self, weights: Mapping[str, Any]) -> None:
        """Take other weights of the same architecture; those that were loaded before are at hand.

        Args:
            weights: State of a network; it must not be changed afterwards.

        Raises:
            ConversionError: If the network cannot be converted with them.
        """
        found = next((compiled for state, compiled in self._states if state is weights), None)
        if found is None:
            found = self._network_of(weights)
            self._states.append((weights, found))
        if found is not self._current:
            self._current.rest()
            self._current = found

    def _network_of(self, weights: Mapping[str, Any] | None) -> _Compiled:
        key = self.converted.key(weights)
        if key not in self._networks:
            self._networks[key] = _Compiled(self.converted.model(weights, key), self.precision)
        return self._networks[key]

    def run(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the logits of each batch, in order; the next one is computed meanwhile.

        Args:
            batches: Windows ``(N, C, *P)``, on the CPU.

        Yields:
            Logits ``(N, K, *P)``, float32.

        Raises:
            ValueError: If windows have another shape.
        """
        queue = self._current.queue(torch.get_num_threads())
        waiting: Tensor | None = None
        try:
            for batch in batches:
                if tuple(batch.shape[1:]) != self.window:
                    raise ValueError(f"windows must be {list(self.window)} (C, *P), got {list(batch.shape[1:])}")
                logits = queue.begin(batch)
                if waiting is not None:
                    queue.wait_for(waiting)
                    yield waiting
                waiting = logits
            if waiting is not None:
                queue.wait_for(waiting)
                yield waiting
        finally:
            queue.close()  # nothing may be written into tensors that are nobody's any more


class _Compiled:
    """A converted network, compiled for the number of threads that it is run with."""

    def __init__(self, model: Any, precision: str) -> None:
        self.model, self.precision = model, precision
        self.threads = 0
        self.compiled: Any = None

    def queue(self, threads: int) -> _Queue:
        """Return what windows are put into.

        Args:
            threads: Number of threads.
        """
        if self.compiled is None or self.threads != threads:
            core = openvino().Core()
            self.compiled = core.compile_model(self.model, "CPU", properties(self.precision, threads))
            self.threads = threads
        # one more than are computed, so that none of them waits for whoever takes the results
        return _Queue(self.compiled, streams(threads) + 1)

    def rest(self) -> None:
        """Give back the memory of feature maps until the next window."""
        if self.compiled is not None:
            self.compiled.release_memory()


class _Queue:
    """Windows that are computed at once, which end in the order in which they begin as far as anybody can see."""

    def __init__(self, compiled: Any, length: int) -> None:
        self.compiled, self.length = compiled, length
        self.output = tuple(compiled.output(0).shape)
        self.free: list[Any] = []
        # request, the batch of logits that it writes into, and the windows that it reads, which it does not keep alive
        self.under_way: deque[tuple[Any, Tensor, Tensor]] = deque()

    def begin(self, batch: Tensor) -> Tensor:
        """Begin with all windows of a batch; return where their logits will be.

        Args:
            batch: Windows ``(N, C, *P)``.
        """
        windows = batch.detach().to(torch.float32).contiguous()
        logits, make = torch.empty((len(windows), *self.output[1:])), openvino().Tensor
        for number in range(len(windows)):
            request = self._request()
            for put, tensor in ((request.set_input_tensor, windows), (request.set_output_tensor, logits)):
                put(make(tensor[number : number + 1].numpy(), shared_memory=True))
            request.start_async()
            self.under_way.append((request, logits, windows))
        return logits

    def _request(self) -> Any:
        if self.free:
            return self.free.pop()
        if len(self.under_way) < self.length:
            return self.compiled.create_infer_request()
        return self._end_first()

    def _end_first(self) -> Any:
        request, *_ = self.under_way.popleft()
        request.wait()
        return request

    def wait_for(self, logits: Tensor) -> None:
        """Wait until all windows of a batch have ended.

        Args:
            logits: What :meth:`begin` returned.
        """
        while any(own is logits for _, own, _ in self.under_way):
            self.free.append(self._end_first())

    def close(self) -> None:
        """Wait for all windows, those after one that failed as well."""
        while self.under_way:
            with contextlib.suppress(RuntimeError):  # whoever waits for the window has it, or nobody wants it any more
                self._end_first()

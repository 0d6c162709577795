"""Logits of one network in a file without a name, so that those of several cost disk and no memory."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class LogitsFile:
    """Logits ``(K, *S)``, written once and read a slice at a time.

    The file has no name: it is gone whenever and however the process ends.

    Args:
        shape: ``(K, *S)``.
        dtype: Type of the logits.
        folder: On whose disk the file lies.

    Attributes:
        shape: ``(K, *S)``.
        dtype: Of the slices that are read.
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, folder: Path) -> None:
        self.shape, self.dtype = tuple(int(size) for size in shape), dtype
        self._kind = torch.empty(0, dtype=dtype).numpy().dtype
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close()

    def write(self, logits: Tensor) -> None:
        """Write all of them; they may lie in memory in any order.

        Raises:
            ValueError: If shape or type are others.
        """
        if tuple(logits.shape) != self.shape or logits.dtype != self.dtype:
            raise ValueError(
                f"expected logits {self.shape} of {self.dtype}, got {tuple(logits.shape)} of {logits.dtype}"
            )
        self._file.seek(0)
        for index in range(self.shape[1]):
            self._file.write(np.ascontiguousarray(logits[:, index].numpy()).data)
        self._file.flush()  # a full disk is told here, where it is named

    def write_resampled(self, logits: np.ndarray, resample: Callable[[np.ndarray], np.ndarray]) -> None:
        """Write logits on another grid, one class after another.

        Args:
            logits: ``(K, *S)`` on their own grid.
            resample: Makes ``(1, *S)`` of the file of ``(1, *S)`` of the logits.
        """
        plane = int(np.prod(self.shape[2:], dtype=np.int64)) * self._kind.itemsize
        for channel in range(self.shape[0]):
            volume = np.asarray(resample(logits[channel : channel + 1]))[0]
            for index, values in enumerate(volume):
                self._file.seek(plane * (index * self.shape[0] + channel))
                self._file.write(np.ascontiguousarray(values, self._kind).data)
        self._file.flush()

    def __getitem__(self, place: tuple[slice, int], /) -> Tensor:
        """Return a slice ``(K, Y, X)``; asked for as ``[:, index]``."""
        shape = (self.shape[0], *self.shape[2:])
        values = np.empty(shape, self._kind)
        self._file.seek(place[1] * values.nbytes)
        read = self._file.readinto(values.reshape(-1).view(np.uint8).data)
        if read != values.nbytes:
            raise OSError(f"the intermediate file of logits ends at slice {place[1]} of {self.shape[1]}")
        return torch.from_numpy(values)

    def close(self) -> None:
        """Give the room on the disk back."""
        with contextlib.suppress(OSError):  # of a buffer that a full disk did not take, which was told
            self._file.close()

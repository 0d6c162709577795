"""The mean probability of several networks at their grid, in a file without a name, so that it costs no memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_FULL = 2**16 - 1


class MeanProbabilities:
    """Probabilities ``(K, *S)``, added up slice by slice along the first axis.

    They are kept as whole numbers of two bytes: in half precision what many networks add up to would be coarser than
    what decides at the border of an organ. The file has no name: it is gone whenever and however the process ends.

    Args:
        shape: ``(K, *S)``.
        members: Number of networks that will be added.
        folder: On whose disk the file lies.

    Attributes:
        dtype: Of the slices that are read.
    """

    dtype = torch.float32

    def __init__(self, shape: Sequence[int], members: int, folder: Path) -> None:
        self.shape = tuple(int(size) for size in shape)
        self.members = members
        self._unit = _FULL // members
        self._added = 0
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close()

    @property
    def _slice_shape(self) -> tuple[int, ...]:
        return (self.shape[0], *self.shape[2:])

    def add(self, logits: Tensor, probabilities: Callable[[Tensor], Tensor], device: torch.device) -> None:
        """Add what a network says.

        Args:
            logits: Logits ``(K, *S)``, in any order of memory.
            probabilities: Softmax, or sigmoid for regions, of ``(K, Y, X)`` float32.
            device: Device to compute on.

        Raises:
            RuntimeError: If all networks were added before.
            ValueError: If the shape is another one.
        """
        if tuple(logits.shape) != self.shape:
            raise ValueError(f"the networks of one grid must give {self.shape} logits, got {tuple(logits.shape)}")
        if self._added == self.members:
            raise RuntimeError(f"all {self.members} networks were added before")
        for index in range(self.shape[1]):
            values = probabilities(logits[:, index].to(device).float()).mul_(self._unit).round_()
            new = values.cpu().numpy().astype(np.uint16)
            if self._added:
                new += self._read(index)
            self._write(index, new)
        self._added += 1

    def __getitem__(self, place: tuple[slice, int], /) -> Tensor:
        """Return the mean of a slice ``(K, Y, X)``, float32; asked for as ``[:, index]``."""
        values = torch.from_numpy(self._read(place[1]).astype(np.float32))
        return values.div_(self._unit * max(self._added, 1))

    def resampled(self, resample: Callable[[np.ndarray], np.ndarray], folder: Path) -> MeanProbabilities:
        """Return the means on another grid, one class after another.

        Args:
            resample: Resamples ``(1, *S)`` float32.
            folder: On whose disk the file lies.
        """
        result: MeanProbabilities | None = None
        for channel in range(self.shape[0]):
            volume = np.stack([self[:, index][channel].numpy() for index in range(self.shape[1])])
            changed = np.asarray(resample(volume[None]))[0]
            if result is None:
                result = MeanProbabilities((self.shape[0], *changed.shape), 1, folder)
                result._added = 1
            # splines overshoot
            whole = np.clip(np.rint(changed * result._unit), 0, _FULL).astype(np.uint16)
            for index, plane in enumerate(whole):
                result._write(index, plane, channel)
        if result is None:
            raise ValueError("there is no class to resample")
        return result

    def close(self) -> None:
        """Give the room on the disk back."""
        self._file.close()

    def _offset(self, index: int, channel: int = 0) -> int:
        plane = int(np.prod(self.shape[2:], dtype=np.int64))
        return 2 * plane * (index * self.shape[0] + channel)

    def _read(self, index: int) -> np.ndarray:
        size = int(np.prod(self._slice_shape, dtype=np.int64))
        self._file.seek(self._offset(index))
        return np.frombuffer(self._file.read(2 * size), np.uint16).reshape(self._slice_shape)

    def _write(self, index: int, values: np.ndarray, channel: int = 0) -> None:
        self._file.seek(self._offset(index, channel))
        self._file.write(np.ascontiguousarray(values).data)


class LabelMaps:
    """Label maps of several networks, in a file without a name, read a slice of all of them at a time.

    Args:
        shape: Of each, ``(*S)``.
        kind: Type of the labels.
        folder: On whose disk the file lies.
    """

    def __init__(self, shape: Sequence[int], kind: Any, folder: Path) -> None:
        self.shape, self.dtype = tuple(int(size) for size in shape), np.dtype(kind)
        self.number = 0
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close()

    @property
    def _plane(self) -> int:
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    def add(self, labels: np.ndarray) -> None:
        """Add the label map of a network.

        Raises:
            ValueError: If the shape is another one.
        """
        if labels.shape != self.shape:
            raise ValueError(f"the label maps must have the shape {self.shape}, got {labels.shape}")
        self._file.seek(0, os.SEEK_END)
        for plane in labels:
            self._file.write(np.ascontiguousarray(plane, self.dtype).data)
        self.number += 1

    def slices(self, index: int) -> list[np.ndarray]:
        """Return one slice of each, ``(*S[1:])``."""
        found = []
        for member in range(self.number):
            self._file.seek(self._plane * (member * self.shape[0] + index))
            found.append(np.frombuffer(self._file.read(self._plane), self.dtype).reshape(self.shape[1:]))
        return found

    def close(self) -> None:
        """Give the room on the disk back."""
        self._file.close()

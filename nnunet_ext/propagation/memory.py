"""The memory of a propagation: keys and values of references, and of some of the slices that were found from them."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_ext.networks.memory_reading import read


class Memory:
    """Keys and values of slices, for one network and one volume.

    Cheng et al., "Rethinking space-time networks with improved memory coverage for efficient video object
    segmentation", NeurIPS 2021, section 4.2. References stay for good. Of propagated slices, those whose index in the
    volume is a multiple of ``every`` stay until they are forgotten, and the last one until the next comes. All
    references are kept at once, as Pham et al. write, section on the propagation module.

    Values lie in one table, of which a slice is some rows: nothing is copied to be read, and what is forgotten is
    overwritten. On GPUs they are float16.

    Args:
        top_k: Number of elements read for each query; ``None`` reads all of them.
        every: Which propagated slices stay.
        include_last: Whether the last propagated slice is kept where its index is no multiple.
        most: Number of propagated slices that stay, at most; then the oldest gives way. References never do.
        slices: Number of slices to make room for at once, so that nothing is copied as the memory grows.

    Raises:
        ValueError: If a number is not positive.
    """

    def __init__(
        self,
        top_k: int | None = 20,
        every: int = 5,
        include_last: bool = True,
        most: int = 32,
        slices: int = 1,
    ) -> None:
        for name, number in {"top_k": top_k, "every": every, "most": most, "slices": slices}.items():
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        self.top_k, self.every, self.include_last, self.most = top_k, every, include_last, most
        self._room = slices
        self._references: list[int] = []
        self._propagated: list[int] = []  # those that stay, in the order of their places
        self._oldest = 0  # place among them of the next to give way
        self._last: int | None = None
        self._keys: Tensor | None = None  # (CK, slices * h * w)
        self._values: Tensor | None = None  # (slices * h * w, K * CV)
        self._shape: tuple[int, ...] = ()  # K, CV, h, w

    @property
    def indices(self) -> list[int]:
        """Slices in memory, in the order of their places: references, propagated slices that stay, the last one."""
        return self._references + self._propagated + ([] if self._last is None else [self._last])

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, places without a slice counted."""
        return sum(table.numel() * table.element_size() for table in (self._keys, self._values) if table is not None)

    def wants(self, index: int) -> bool:
        """Whether a propagated slice would be kept; its value need not be computed otherwise.

        Args:
            index: Of the slice in the volume.
        """
        return self.include_last or index % self.every == 0

    def add_reference(self, index: int, key: Tensor, value: Tensor) -> None:
        """Keep a reference for good.

        Args:
            index: Of the slice in the volume.
            key: ``(1, CK, h, w)``.
            value: ``(1, K, CV, h, w)``.

        Raises:
            RuntimeError: If there are propagated slices, which lie behind the references.
            ValueError: If it has another shape than the others.
        """
        if self._propagated or self._last is not None:
            raise RuntimeError("references must be added before propagated slices; call forget_propagated() first")
        self._write(len(self._references), key, value)
        self._references.append(index)

    def add(self, index: int, key: Tensor, value: Tensor) -> None:
        """Keep a propagated slice, if it is one to be kept, instead of the last one.

        Args:
            index: Of the slice in the volume.
            key: ``(1, CK, h, w)``.
            value: ``(1, K, CV, h, w)``.

        Raises:
            ValueError: If it has another shape than the others.
        """
        stays = index % self.every == 0
        if not self.wants(index):
            return
        self._last = None
        if stays and len(self._propagated) == self.most:
            place, self._oldest = self._oldest, (self._oldest + 1) % self.most
            self._write(len(self._references) + place, key, value)
            self._propagated[place] = index
            return
        self._write(len(self.indices), key, value)
        if stays:
            self._propagated.append(index)
        else:
            self._last = index

    def forget_propagated(self) -> None:
        """Forget all but the references."""
        self._propagated, self._last, self._oldest = [], None, 0

    def read(self, key: Tensor) -> Tensor:
        """Return what the memory holds for each place of a slice, ``(1, K, CV, h, w)``.

        Args:
            key: ``(1, CK, h, w)``.

        Raises:
            RuntimeError: If the memory is empty.
        """
        if self._keys is None or self._values is None:
            raise RuntimeError("the memory must have a reference before it is read, got none; add one")
        objects, channels, height, width = self._shape
        elements = len(self.indices) * height * width
        values = self._values[:elements].view(1, elements, objects, channels).permute(0, 2, 3, 1)
        found = read(self._keys[None, :, :elements], values, key.flatten(2), self.top_k)
        return found.unflatten(3, (height, width))

    def _write(self, place: int, key: Tensor, value: Tensor) -> None:
        if not self._shape:
            self._shape = tuple(value.shape[1:])
        if tuple(value.shape) != (1, *self._shape) or key.shape[2:] != value.shape[3:] or len(key) != 1:
            raise ValueError(
                f"a slice must have a value of shape {(1, *self._shape)} and a key (1, CK, h, w) of the same h and w, "
                f"got {tuple(value.shape)} and {tuple(key.shape)}"
            )
        objects, channels, height, width = self._shape
        size = height * width
        self._make_room(place + 1, key, value)
        if self._keys is None or self._values is None:
            return
        rows = slice(place * size, (place + 1) * size)
        self._keys[:, rows].copy_(key[0].flatten(1))
        self._values[rows].view(size, objects, channels).copy_(value[0].flatten(2).permute(2, 0, 1))

    def _make_room(self, slices: int, key: Tensor, value: Tensor) -> None:
        """Let the tables hold so many slices."""
        objects, channels, height, width = self._shape
        size = height * width
        there = 0 if self._values is None else len(self._values) // size
        if slices <= there:
            return
        room = max(slices, self._room, there * 3 // 2)
        on_gpu = value.device.type == "cuda"
        keys = key.new_empty((key.shape[1], room * size), dtype=torch.float32)
        values = value.new_empty((room * size, objects * channels), dtype=torch.float16 if on_gpu else torch.float32)
        if self._keys is not None and self._values is not None:
            keys[:, : there * size].copy_(self._keys)
            values[: there * size].copy_(self._values)
        self._keys, self._values = keys, values

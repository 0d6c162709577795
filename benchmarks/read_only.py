"""A worker that reads and does nothing else; in a module of its own, so that workers can import it."""

from __future__ import annotations


def read(reader_class: type, images: tuple[str, ...], label: str | None) -> None:
    """Read one case as nnU-Net does."""
    reader = reader_class()
    reader.read_images(list(images))
    if label is not None:
        reader.read_seg(label)

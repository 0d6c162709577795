"""The base of the parts: nothing at run time; for type checkers, our base, before which all parts stand."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnunet_ext.trainers.base import ExtPart as TrainerMixin
else:
    TrainerMixin = object

__all__ = ["TrainerMixin"]

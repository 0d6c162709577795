"""The base of the mixins: nothing at run time; for type checkers, a class that has everything nnU-Net's trainer has."""

from typing import Any

TrainerMixin: Any = object

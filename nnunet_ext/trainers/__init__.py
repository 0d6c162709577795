"""The names after ``-tr``. Any composed name is an attribute of this package, so that classes can be pickled."""

from typing import Any

from nnunet_ext.trainers.names import COMMON, find_trainer

__all__ = list(COMMON)


def __getattr__(name: str) -> Any:
    if name.startswith("nnUNetTrainer"):
        try:
            trainer = find_trainer(name)
        except ValueError as error:  # of a name that begins like ours; hasattr must answer False
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}: {error}") from error
        if trainer is not None:
            return trainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

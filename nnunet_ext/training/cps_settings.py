"""Settings of CPS that exclude each other, refused before anything is built."""

from __future__ import annotations

from typing import Protocol

VIEWS = ("same", "weak_strong")
PSEUDO_ON = ("both", "unlabelled")


class CPSSettings(Protocol):
    """A trainer of CPS; its part says what each setting does."""

    views: str | None
    pseudo_on: str | None
    second_geometry: bool
    unlabeled_every: int
    use_unlabeled: bool

    def views_and_halves(self) -> tuple[str, str]:
        """Return ``views`` and ``pseudo_on``, where they are None by the parts of the trainer."""
        ...


def refuse_senseless(trainer: CPSSettings, mixing: tuple[str, str] | None) -> None:
    """Raise ValueError for views and pseudo-labels that cannot be had together.

    Args:
        trainer: A trainer of CPS.
        mixing: Part that exchanges boxes of unlabelled patches, and how its settings begin; None if there is none.
    """
    for name, value, known in (("views", trainer.views, VIEWS), ("pseudo_on", trainer.pseudo_on, PSEUDO_ON)):
        if value is not None and value not in known:
            raise ValueError(f"{name} must be None or one of {', '.join(known)}, got {value!r}")
    views, pseudo_on = trainer.views_and_halves()
    if pseudo_on == "both" and views == "weak_strong":
        raise ValueError(
            "pseudo_on 'both' and views 'weak_strong' exclude each other: labelled patches have one view; set "
            "pseudo_on to 'unlabelled' or views to 'same'"
        )
    if trainer.second_geometry and views == "same":
        raise ValueError(
            "second_geometry turns strong views, of which there are none with views 'same': set views to "
            "'weak_strong' or second_geometry to False"
        )
    if pseudo_on == "both" and mixing is not None:
        part, setting = mixing
        raise ValueError(
            f"pseudo_on 'both' goes without {part}, which exchanges boxes of unlabelled patches alone: set "
            f"pseudo_on to 'unlabelled' or {setting}_probability to 0"
        )
    if pseudo_on == "both" and trainer.unlabeled_every > 1:
        raise ValueError(
            f"unlabeled_every {trainer.unlabeled_every} needs pseudo_on 'unlabelled', as pseudo_on 'both' learns the "
            "peer's labels in every step: set unlabeled_every to 1, or views to 'weak_strong'"
        )
    if pseudo_on == "unlabelled" and not trainer.use_unlabeled:
        raise ValueError(
            "pseudo_on 'unlabelled' has nothing to learn from where use_unlabeled is False: set pseudo_on to "
            "'both' and views to 'same', or use a trainer without CPS"
        )

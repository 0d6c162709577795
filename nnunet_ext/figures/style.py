"""The style of all pictures, and how they are written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from nnunet_ext.files import whole


@contextmanager
def plain_style() -> Iterator[None]:
    """Draw with matplotlib's own settings; nnU-Net's progress.png leaves seaborn's large fonts in its process."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; the file is complete or not there."""
    with whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)

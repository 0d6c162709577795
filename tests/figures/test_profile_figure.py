"""Pictures of profiles."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from nnunet_ext.evaluation.profile import measures
from nnunet_ext.evaluation.usage import Curve, Usage
from nnunet_ext.figures.profile import draw_profile

COLOURS = {
    "wall": (153, 153, 153),
    "reading": (86, 180, 233),
    "network": (213, 94, 0),
    "first": (0, 114, 178),
    "second": (230, 159, 0),
}


def entry(number: int, gpu: bool, quality: bool, stages: bool) -> dict[str, Any]:
    """Make up what a setting measured."""
    seconds = [float(second) for second in range(20)]
    curve = Curve(seconds, [abs(10.0 - second) * (number + 1) * 400 for second in seconds])
    usage = Usage(curve, 30.0, curve, curve.peak(), curve if gpu else None)
    points = {"seconds": curve.seconds, "values": curve.values}
    known = {"reading": 0.3, "preprocessing": 1.0, "network": 2.0 + number, "resampling": 0.5, "writing": 0.2}
    return {
        "flags": [],
        "measured": measures(20.0 + number, usage, 4, known if stages else None),
        "curves": {"cpu_percent": points, "memory_mb": points, "gpu_memory_mb": points if gpu else None},
        **({"quality": {"tolerance_mm": 2.0, "mean": {"dsc": 0.9, "nsd": None}, "classes": {}}} if quality else {}),
    }


@pytest.mark.parametrize(
    ("count", "gpu", "quality"), [(0, False, False), (1, True, False), (3, True, True), (12, False, True)]
)
def test_pictures_of_any_profile(tmp_path: Path, count, gpu, quality):
    settings: dict[str, Any] = {f"setting_{n}": entry(n, gpu, quality and n > 0, n % 2 == 0) for n in range(count)}
    settings["failed"] = {"flags": ["--x"], "error": "failed"}
    options = {"model": "T__P__C", "folds": [0], "device": "cuda" if gpu else "cpu"}
    device = {"gpu": "GPU" if gpu else None, "processor": "CPU", "cores": 2}
    document = {"device": device, "options": options, "cases": ["a"], "settings": settings}
    draw_profile(tmp_path / "profile.png", document)
    with Image.open(tmp_path / "profile.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    drawn = {name: (pixels == colour).all(-1).sum() > 300 for name, colour in COLOURS.items()}
    assert drawn == {name: gpu if name == "second" else count > 0 for name in COLOURS}
    assert [file.name for file in tmp_path.iterdir()] == ["profile.png"]


def test_the_best_trade_is_drawn(tmp_path: Path):
    settings = {f"setting_{n}": entry(4 - n, False, True, False) for n in range(4)}
    for number, one in enumerate(settings.values()):
        one["quality"]["mean"]["dsc"] = 0.9 - 0.003 * number
    settings["setting_3"]["quality"]["mean"]["dsc"] = None  # no class is anywhere
    options = {"model": "T__P__C", "folds": [0], "device": "cpu"}
    device = {"gpu": None, "processor": "CPU", "cores": 2}
    document = {"device": device, "options": options, "cases": ["a"], "settings": settings}
    pictures = {}
    trade = {"budget": 0.005, "reference": "setting_0", "setting": "setting_1", "command": "x"}
    nothing = {"budget": 0.005, "reference": None, "setting": None, "command": None}
    for name, more in (("trade", {"trade": trade}), ("none", {"trade": nothing})):
        with matplotlib.rc_context({"axes.facecolor": "lavender"}):  # as nnU-Net's curves leave it in their process
            draw_profile(tmp_path / f"{name}.png", document | more)
        with Image.open(tmp_path / f"{name}.png") as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        # the area of the budget: its colour, a tenth of it
        pictures[name] = (abs(pixels - (230, 245, 241)).max(-1) <= 1).sum()
    assert pictures["none"] == 0
    assert pictures["trade"] > 5000

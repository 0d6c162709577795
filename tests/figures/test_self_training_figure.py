"""The picture of the cycles, whatever there is to draw."""

import math

import pytest
from PIL import Image

from nnunet_ext.figures.self_training import draw_cycles


@pytest.mark.parametrize("classes", [1, 25])
@pytest.mark.parametrize("cases", [[0.5], [0.5, 0.7, math.nan]])
@pytest.mark.parametrize("cycles", [2, 4])
def test_it_is_drawn(tmp_path, classes, cases, cycles):
    entries = [
        {
            "cycle": number,
            "pseudo_labels": 3 * number,
            "dice": 0.5 + number / 10,
            "worst_case": 0.4,
            "classes": {f"class {n}": math.nan if n == 3 else n / 25 for n in range(classes)},
            "cases": [value + number / 100 for value in cases],
            "interval": (number / 200, number / 50),
        }
        for number in range(cycles)
    ]
    draw_cycles(tmp_path / "a.png", "Dataset", entries, 1)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size[0] > 1000

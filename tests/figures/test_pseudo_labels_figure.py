"""Pictures of agreement: they hold what they should, whatever there is to draw."""

import math

import numpy as np
import pytest
from PIL import Image

from nnunet_ext.figures.pseudo_labels import OneCase, _box, draw_contact_sheet, draw_scores


def size_of(file):
    with Image.open(file) as picture:
        return picture.size


def one_case(members=2, empty=False):
    labels = np.zeros((members, 20, 24), np.uint8)
    if not empty:
        labels[:, 6:12, 8:14] = 1
        labels[0, 6:12, 14:16] = 2
    return OneCase("scan: 0.9", np.random.default_rng(0).normal(0, 1, (20, 24)), 2.5, labels[-1], labels)


@pytest.mark.parametrize("classes", [1, 25])
@pytest.mark.parametrize("thresholds", [None, (0.9, 0.7)])
def test_scores(tmp_path, classes, thresholds):
    values = {f"class {n}": [0.95, math.nan, 0.3] for n in range(classes)} | {"absent": [math.nan] * 3}
    draw_scores(tmp_path / "a.png", [0.95, 0.9, 0.3], values, [True, True, False], thresholds)
    assert size_of(tmp_path / "a.png")[0] > 900


def test_contact_sheet(tmp_path):
    rows = {"least agreement": [one_case(), one_case(3, empty=True)], "most agreement": [one_case()]}
    draw_contact_sheet(tmp_path / "a.png", rows)
    assert size_of(tmp_path / "a.png")[1] > 500


def test_outlines_have_a_margin_around_them():
    rows, columns = _box(one_case())
    assert (rows.start, rows.stop) == (2, 16)
    assert (columns.start, columns.stop) == (4, 20)
    assert _box(one_case(empty=True)) == (slice(None), slice(None))

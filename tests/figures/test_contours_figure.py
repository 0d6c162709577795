"""Contours that are drawn."""

import numpy as np
import pytest
from figures.made_up import labels_of
from reference import naive_cwcd

from nnunet_ext.figures.contours import Band, LabelNames, contours_of


@pytest.mark.parametrize("border", ["inside", "outside"])
def test_contours_are_those_of_the_loss(border):
    labels = labels_of(0).astype(np.int32)
    labels[0] = 3
    names = LabelNames({"liver": 1, "adrenal": 2}, ignored=3)
    contours = contours_of(labels, (1.0, 1.0, 1.0), names, Band(iterations=2, border=border))
    expected = naive_cwcd.contours(labels, 3, 2, border, 3)
    for name, label in names.names.items():
        np.testing.assert_array_equal(contours.part(name)[0], labels == label)
        np.testing.assert_array_equal(contours.part(name)[1], expected & (labels == label))
        voxels, share = contours.shares()[name]
        assert voxels == (labels == label).sum()
        assert share == pytest.approx((expected & (labels == label)).sum() / voxels)
    # an axis more than three times coarser has no contour
    flat = contours_of(labels, (4.0, 1.0, 1.0), names, Band())
    np.testing.assert_array_equal(
        flat.band, naive_cwcd.contours(labels, (1, 3, 3), 1, "inside", 3) & (labels > 0) & (labels < 3)
    )


def test_regions_have_contours_of_their_own():
    labels = labels_of(0).astype(np.int32)
    names = LabelNames({"both": (1, 2), "adrenal": 2})
    contours = contours_of(labels, (1.0, 1.0, 1.0), names, Band())
    whole = naive_cwcd.contours((labels > 0).astype(int), 3, 1, "inside")
    np.testing.assert_array_equal(contours.part("both")[1], whole & (labels > 0))
    table = contours.shares()
    assert table["adrenal"] == (8, 1.0)
    assert table["both"][0] == 248

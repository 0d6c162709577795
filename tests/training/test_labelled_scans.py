"""What labelled scans hold of each class, as whole scans."""

import pytest

from nnunet_ext.training.labelled_scans import mean_share

CASES = [{-1: 100, 0: 90, 1: 9, 2: 1}, {0: 500, 1: 0, 2: 500}]


def test_the_mean_over_scans_of_any_size_without_what_was_cropped():
    """0.9, 0.09, 0.01 and 0.5, 0, 0.5, whatever their 100 and 1000 voxels; -1 counts nowhere."""
    assert mean_share(CASES, [0, 1, 2]).tolist() == pytest.approx([0.7, 0.045, 0.255])


def test_of_regions_the_share_inside():
    assert mean_share(CASES, [(1, 2), 2]).tolist() == pytest.approx([0.3, 0.255])


@pytest.mark.parametrize("cases", [[], [{-1: 5}]])
def test_without_voxels_there_is_no_share(cases):
    assert mean_share(cases, [0, 1]).tolist() == [0.0, 0.0]
    assert mean_share(cases, [(1, 2), 2]).tolist() == [0.0, 0.0]

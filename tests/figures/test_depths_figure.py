"""Pictures of the depths of a nested network."""

import pytest
from evaluation.made_up import prune_document
from PIL import Image

from nnunet_ext.figures.depths import draw_depths


@pytest.mark.parametrize("gpu", [None, 2000.0])
@pytest.mark.parametrize("recommended", [1, None])
def test_a_picture_with_and_without_a_recommendation(tmp_path, gpu, recommended):
    draw_depths(tmp_path / "prune.png", prune_document(gpu) | {"recommended": recommended})
    with Image.open(tmp_path / "prune.png") as picture:
        assert picture.width > 3 * picture.height  # four panels side by side
    assert (tmp_path / "prune.png").stat().st_size > 10_000

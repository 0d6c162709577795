"""Curves in nnU-Net's logger and in progress.png."""

import numpy as np
import pytest
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from PIL import Image

from nnunet_ext.training import curves
from nnunet_ext.training.curves import Panel


@pytest.fixture
def logger(tmp_path, monkeypatch):
    monkeypatch.delenv("nnUNet_wandb_enabled", raising=False)
    return MetaLogger(str(tmp_path), False)


def test_registered_curves_are_logged_and_survive_a_checkpoint(logger, tmp_path):
    curves.register(logger, ["a", "b"])
    logger.log("train_losses", 1.0, 0)
    curves.log(logger, {"a": 0.5, "b": [1.0, 2.0]}, 0)
    other = MetaLogger(str(tmp_path), False)
    other.load_checkpoint(logger.get_checkpoint())
    curves.register(other, ["a", "b", "c"])
    assert other.get_value("a", None) == [0.5]
    assert other.get_value("b", None) == [[1.0, 2.0]]
    assert np.isnan(other.get_value("c", None)).tolist() == [True]


def test_values_reach_further_loggers_class_by_class(logger):
    class Recorder:
        def __init__(self):
            self.seen = {}

        def log(self, key, value, step):
            self.seen[key, step] = value

    recorder = Recorder()
    logger.loggers.append(recorder)
    curves.register(logger, ["share"])
    curves.log(logger, {"share": [0.25, 0.75]}, 0)
    assert recorder.seen == {("share/class_1", 0): 0.25, ("share/class_2", 0): 0.75}


def test_picture_is_put_beside_nnunets(logger, tmp_path):
    curves.register(logger, ["a", "b"])
    for epoch in range(3):
        curves.log(logger, {"a": float(epoch), "b": [0.1, float("nan") if epoch == 1 else 0.2]}, epoch)
    picture = curves.draw(
        logger,
        [Panel("one", (("a", "a"),)), Panel("two", (("b", "b"), ("b", "again")), log_scale=True)],
        ["bg", "x", "y"],
    )
    assert picture.std() > 5
    Image.new("RGB", (30, 60), "red").save(tmp_path / "progress.png")
    curves.append_to_progress_png(str(tmp_path), picture)
    with Image.open(tmp_path / "progress.png") as joint:
        assert joint.height == 60
        assert joint.width == 30 + round(picture.shape[1] * 60 / picture.shape[0])
        assert joint.convert("RGB").getpixel((5, 5)) == (255, 0, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["progress.png"]


def test_without_nnunets_picture_nothing_is_written(tmp_path):
    curves.append_to_progress_png(str(tmp_path), np.zeros((4, 4, 3), np.uint8))
    assert not list(tmp_path.iterdir())

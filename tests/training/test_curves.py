"""Curves in nnU-Net's logger and in progress.png."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from PIL import Image

from nnunet_ext import files
from nnunet_ext.training import cps_monitor, curves
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


CLASSES = (3, 13, 30, 117)


def cps_logger(classes, epochs=80):
    """Curves as of CPS; class i has a Dice of (i + 1) / (classes + 1) and a share that falls with i."""
    dice = [(i + 1) / (classes + 1) for i in range(classes)]
    share = [0.01 * 0.9**i for i in range(classes)]
    content = {key: [0.5] * epochs for key in ("supervised_loss_1", "supervised_loss_2", "cps_loss", "cps_lambda")}
    content |= {key: [[1 - sum(share), *share]] * epochs for key in ("pseudo_label_share", "labelled_share")}
    content |= {key: [dice] * epochs for key in ("cps_agreement", "pseudo_dice_1", "pseudo_dice_2")}
    return SimpleNamespace(local_logger=SimpleNamespace(my_fantastic_logging=content))


def names(classes):
    return ["background", *(f"organ {i}" for i in range(classes))]


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("epochs", [0, 1, 200])
def test_any_number_of_classes_is_drawn_without_a_warning(classes, epochs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = curves.draw(cps_logger(classes, epochs), cps_monitor.PANELS, names(classes))
    assert picture.shape == (1600, 960, 3)


@pytest.mark.parametrize("classes", CLASSES)
def test_panels_stay_readable_however_many_classes_there_are(classes):
    figure = curves.figure_of(cps_logger(classes), cps_monitor.PANELS, names(classes))
    for axes in figure.axes[1:]:
        colours = [text.get_text() for text in axes.get_legend().get_texts()]
        assert len(colours) <= 17
        lines = [line for line in axes.lines if np.isfinite(line.get_ydata()).any()]
        assert len(lines) <= 2 * curves.MOST_CLASSES + 2
        solid = [line.get_color() for line in lines if line.get_linestyle() == "-"]
        assert len(solid) == len(set(solid))  # no colour stands for two classes


@pytest.mark.parametrize("classes", [3, 13])
def test_all_classes_of_a_dataset_of_organs_are_shown(classes):
    figure = curves.figure_of(cps_logger(classes), cps_monitor.PANELS, names(classes))
    legend = " ".join(text.get_text() for text in figure.axes[3].get_legend().get_texts())
    assert all(f"organ {i} " in legend for i in range(classes))
    assert "of" not in figure.axes[3].get_title()[len("pseudo Dice on validation patches, network 2 dashed") :]
    assert ("mean" in legend) is (classes == 13)


def test_of_too_many_classes_the_worst_the_smallest_and_the_mean_are_shown():
    figure = curves.figure_of(cps_logger(117), cps_monitor.PANELS, names(117))
    chosen = {f"organ {i}" for i in (0, 1, 2, 3, 4, 5, 113, 114, 115, 116)}
    for axes, mean in zip(figure.axes[1:], ("mean 0.50", None, "mean 0.50 / 0.50"), strict=True):
        legend = [text.get_text() for text in axes.get_legend().get_texts()]
        assert {" ".join(text.split()[:2]) for text in legend if text.startswith("organ")} == chosen
        assert "6 worst and 4 smallest of 117 classes" in axes.get_title()
        assert [text for text in legend if text.startswith("mean")] == ([mean] if mean else [])


def test_a_picture_is_whole_or_the_old_one(tmp_path, monkeypatch):
    Image.new("RGB", (30, 60), "red").save(tmp_path / "progress.png")
    before = (tmp_path / "progress.png").read_bytes()

    def broken(self, target, *arguments, **options):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", broken)
    with pytest.raises(files.DiskFullError, match=r"progress\.png cannot be written"):
        curves.append_to_progress_png(str(tmp_path), np.zeros((4, 4, 3), np.uint8))
    assert (tmp_path / "progress.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["progress.png"]

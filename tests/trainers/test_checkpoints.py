"""Checkpoints that are damaged, and what is left of those that were never finished."""

import errno
import os
from pathlib import Path

import pytest
import torch

from nnunet_ext import files
from nnunet_ext.training import checkpoints

NAMES = ("nnUNetTrainerCPS", "nnUNetTrainerCWCD", "nnUNetTrainerANUNet", "nnUNetTrainer_2epochs")


def damaged(path, how):
    whole = path.read_bytes()
    content = {
        "garbage": os.urandom(100_000),
        "text": b"not a checkpoint",
        "zeros": bytes(100),
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "without its end": whole[:-100],
    }
    path.write_bytes(content[how])


@pytest.mark.parametrize("name", NAMES)
def test_damaged_checkpoints_are_named(make_trainer, name):
    trainer = make_trainer(name)
    trainer.initialize()
    path = Path(trainer.output_folder) / "checkpoint_final.pth"
    for how in ("garbage", "text", "zeros", "empty", "truncated", "without its end"):
        trainer.save_checkpoint(str(path))
        damaged(path, how)
        with pytest.raises(RuntimeError, match=r"checkpoint_final\.pth is not a whole nnU-Net checkpoint.*start over"):
            make_trainer(name).load_checkpoint(str(path))


@pytest.mark.parametrize(
    ("content", "reason"), [([1, 2], "it holds a list"), ({"trainer_name": "nnUNetTrainerCWCD"}, "it lacks network_we")]
)
def test_other_content_is_named(make_trainer, content, reason):
    trainer = make_trainer("nnUNetTrainerCWCD")
    path = Path(trainer.output_folder) / "checkpoint_final.pth"
    torch.save(content, path)
    with pytest.raises(RuntimeError, match=rf"is not a whole nnU-Net checkpoint .{reason}"):
        trainer.load_checkpoint(str(path))


def test_weights_alone_are_no_training(make_trainer):
    """As exported and pruned models hold them."""
    trainer = make_trainer("nnUNetTrainerCWCD")
    trainer.initialize()
    path = Path(trainer.output_folder) / "checkpoint_final.pth"
    content = {key: checkpoints.stock_state(trainer)[key] for key in ("network_weights", "trainer_name", "init_args")}
    torch.save(content, path)
    with pytest.raises(RuntimeError, match="holds weights alone.*use it with -pretrained_weights instead of --c"):
        make_trainer("nnUNetTrainerCWCD").load_checkpoint(str(path))


def test_a_checkpoint_of_other_package_versions_is_not_called_damaged(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint_final.pth"
    path.write_bytes(b"")

    def load(*arguments, **options):
        raise ModuleNotFoundError("No module named 'numpy._core'")

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(RuntimeError, match="cannot be read here .*numpy._core.*; use the package versions"):
        checkpoints.read(path)


def test_what_a_file_server_says_is_not_put_down_to_the_checkpoint(tmp_path, monkeypatch):
    (tmp_path / "c.pth").write_bytes(b"whole")

    def load(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(OSError, match="Input/output error"):
        checkpoints.read(tmp_path / "c.pth")


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth is no file; train first"):
        checkpoints.read(tmp_path / "none.pth")


def test_a_full_disk_is_named_and_the_old_checkpoint_stays(make_trainer, monkeypatch):
    trainer = make_trainer("nnUNetTrainerCWCD")
    trainer.initialize()
    path = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(path))
    before = path.read_bytes()

    def save(content, target):
        Path(target).write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", save)
    monkeypatch.setattr(files, "_free_bytes", lambda path: 1000)
    with pytest.raises(files.DiskFullError, match=r"checkpoint_latest\.pth cannot be written .*no room on its disk"):
        trainer.save_checkpoint(str(path))
    assert path.read_bytes() == before
    assert not list(path.parent.glob(f"{files.PREFIX}*"))


def test_what_killed_trainings_left_is_swept_at_the_start(make_trainer):
    trainer = make_trainer("nnUNetTrainerCWCD")
    folder = Path(trainer.output_folder)
    dead, alive = files._partial_name("checkpoint_latest.pth"), files._partial_name("checkpoint_best.pth")
    dead = dead.replace(f"_{os.getpid()}_", "_4194000_")
    for name in (dead, alive, "unfinished_checkpoint.tmp", ".progress.png", "checkpoint_latest.pth"):
        (folder / name).write_bytes(b"half")
    trainer.initialize()
    left = {path.name for path in folder.iterdir()}
    assert {alive, "checkpoint_latest.pth"} <= left
    assert not {dead, "unfinished_checkpoint.tmp", ".progress.png"} & left

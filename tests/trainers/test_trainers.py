"""The part CPS inside nnU-Net's trainer."""

import os
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from reference import tiny

from nnunet_ext.networks.averaging import AverageOfNetworks
from nnunet_ext.training import second_network
from nnunet_ext.training.checkpoints import SECOND_NETWORK, stock_state

SHORT = "nnUNetTrainerCPS_2epochs_2iterations"


def weights(network):
    return {key: value.detach().clone() for key, value in network.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[key], second[key]) for key in first)


def train(trainer, epochs=None):
    """Run nnU-Net's own loop, without the final validation, which the stock commands' tests cover."""
    trainer.num_epochs = epochs or trainer.num_epochs
    trainer.run_training()
    return trainer


@pytest.mark.parametrize("name", ["nnUNetTrainerCPS", "nnUNetTrainerCPS_100epochs", SHORT, "nnUNetTrainer_3iterations"])
def test_stock_lookup_finds_the_name(name):
    assert recursive_find_trainer_class_by_name(name).__name__ == name


@pytest.mark.parametrize(
    ("configuration", "kind"),
    [
        ("3d_fullres", "labels"),
        ("2d", "labels"),
        ("3d_lowres", "labels"),
        ("3d_fullres", "ignore"),
        ("2d", "regions"),
        ("3d_fullres", "regions_ignore"),
    ],
)
def test_trains_two_epochs_and_restores(make_trainer, configuration, kind):
    trainer = train(make_trainer(SHORT, configuration, kind))
    curves = trainer.logger.get_checkpoint()
    assert {len(values) for values in curves.values()} == {2}
    assert curves["cps_lambda"] == [0.5, 0.5]  # R = round(0.5 * 2) = 1
    assert all(np.isfinite(curves[key]).all() for key in ("supervised_loss_1", "supervised_loss_2", "cps_loss"))
    final = Path(trainer.output_folder) / "checkpoint_final.pth"
    restored = make_trainer(SHORT, configuration, kind)
    restored.load_checkpoint(str(final))
    assert same(weights(trainer.network), weights(restored.network))
    assert same(weights(trainer.network_2), weights(restored.network_2))
    assert not list(Path(trainer.output_folder).glob("*.tmp"))


@pytest.mark.parametrize(
    ("setting", "value"), [("enable_deep_supervision", False), ("lr_schedule", "plateau"), ("use_unlabeled", False)]
)
def test_settings(make_trainer, setting, value):
    trainer = make_trainer(SHORT)
    setattr(trainer, setting, value)
    train(trainer)
    assert np.isfinite(trainer.logger.get_value("cps_loss", -1))


def test_bfloat16_on_cpus(make_trainer, monkeypatch):
    monkeypatch.setenv("nnUNet_ext_cpu_bf16", "1")
    trainer = train(make_trainer(SHORT))
    assert np.isfinite(trainer.logger.get_value("cps_loss", -1))
    assert next(trainer.network.parameters()).dtype == torch.float32
    assert np.isfinite(train(make_trainer("nnUNetTrainer_1epochs_1iterations")).logger.get_value("train_losses", -1))


def test_a_training_can_be_repeated_and_another_seed_gives_another(make_trainer, monkeypatch):
    first, second = (weights(train(make_trainer(SHORT)).network_2) for _ in range(2))
    assert same(first, second)
    monkeypatch.setenv("nnUNet_ext_seed", "1")
    assert not same(first, weights(train(make_trainer(SHORT)).network_2))


def test_networks_start_apart(make_trainer, monkeypatch):
    trainer = make_trainer()
    trainer.initialize()
    assert not same(weights(trainer.network), weights(trainer.network_2))
    alike = make_trainer()
    monkeypatch.setattr("nnunet_ext.trainers.base.derived_seed", lambda *numbers: 1)
    with pytest.raises(RuntimeError, match="both networks of CPS were initialised alike"):
        alike.initialize()


def test_without_weight_and_unlabelled_half_it_trains_as_nnunet_does(make_trainer):
    """lambda 0, labelled batches only: the weights of plain nnU-Net after n steps."""
    trainer = make_trainer("nnUNetTrainerCPS")
    trainer.cps_weight = 0.0
    trainer.use_unlabeled = False
    trainer.initialize()
    plain = make_trainer(cls=nnUNetTrainer)
    plain.initialize()
    plain.network.load_state_dict(trainer.network.state_dict())
    plain.set_deep_supervision_enabled(True)
    loader, _ = trainer.get_dataloaders()
    for _ in range(5):
        batch = next(loader)
        assert "unlabeled" not in batch
        report = plain.train_step({"data": batch["data"], "target": batch["target"]})
        assert trainer.train_step(batch)["loss"] == pytest.approx(float(report["loss"]), rel=1e-6)
    assert same(weights(trainer.network), weights(plain.network))


def test_length_part_alone_trains_as_nnunet_does(make_trainer):
    ours, plain = make_trainer("nnUNetTrainer_3epochs_10iterations"), make_trainer(cls=nnUNetTrainer)
    assert (ours.num_epochs, ours.num_iterations_per_epoch, ours.num_val_iterations_per_epoch) == (3, 10, 2)
    assert ours.save_every == 1
    ours.initialize()
    plain.initialize()
    plain.network.load_state_dict(ours.network.state_dict())
    loader, _ = ours.get_dataloaders()
    for _ in range(3):
        batch = next(loader)
        assert ours.train_step(batch)["loss"] == plain.train_step(batch)["loss"]
    assert same(weights(ours.network), weights(plain.network))


@pytest.mark.parametrize(
    ("name", "save_every"),
    [
        ("nnUNetTrainerCPS_5epochs", 1),
        ("nnUNetTrainerCPS_100epochs", 10),
        ("nnUNetTrainerCPS_2000epochs", 50),
        ("nnUNetTrainerCPS", 50),
    ],
)
def test_short_trainings_save_often_enough_to_continue(make_trainer, name, save_every):
    assert make_trainer(name).save_every == save_every


def test_interrupted_training_continues_where_it_was(make_trainer):
    """Without loader processes, the epoch's loading seed makes both runs draw the same batches."""
    name = "nnUNetTrainerCPS_4epochs_2iterations"
    whole = make_trainer(name)
    whole.lr_schedule = "plateau"

    class Stopped(Exception):
        pass

    stopped = make_trainer(name)
    stopped.lr_schedule = "plateau"
    end = stopped.on_epoch_end

    def stop_after_two():
        end()
        if stopped.current_epoch == 2:
            raise Stopped

    stopped.on_epoch_end = stop_after_two
    with pytest.raises(Stopped):
        stopped.run_training()
    latest = os.path.join(stopped.output_folder, "checkpoint_latest.pth")
    resumed = make_trainer(name)
    resumed.lr_schedule = "plateau"
    resumed.load_checkpoint(latest)
    assert resumed.current_epoch == 2
    assert same(weights(resumed.network_2), weights(stopped.network_2))
    momentum = [s["momentum_buffer"] for s in resumed.optimizer_2.state_dict()["state"].values()]
    expected = [s["momentum_buffer"] for s in stopped.optimizer_2.state_dict()["state"].values()]
    assert all(torch.equal(a, b) for a, b in zip(momentum, expected, strict=True))
    assert resumed.lr_scheduler_2.state_dict() == stopped.lr_scheduler_2.state_dict()
    train(resumed)
    assert resumed.logger.get_checkpoint()["cps_lambda"] == [0.25, 0.5, 0.5, 0.5]
    assert {len(v) for v in resumed.logger.get_checkpoint().values()} == {4}


def test_checkpoint_is_nnunets_with_the_second_network_under_its_own_key(make_trainer):
    trainer = make_trainer(SHORT)
    trainer.initialize()
    path = os.path.join(trainer.output_folder, "c.pth")
    trainer.save_checkpoint(path)
    ours = torch.load(path, weights_only=False)
    plain = make_trainer(cls=nnUNetTrainer)
    plain.initialize()
    plain.save_checkpoint(path)
    stock = torch.load(path, weights_only=False)
    assert set(ours) - set(stock) == {SECOND_NETWORK}
    assert set(stock) == set(stock_state(trainer))
    assert list(ours["network_weights"]) == list(stock["network_weights"])
    assert ours["trainer_name"] == SHORT
    assert "unlabeled" not in ours["init_args"]["dataset_json"]
    names = {c.get("preprocessor_name") for c in ours["init_args"]["plans"]["configurations"].values()}
    assert names == {"DefaultPreprocessor", None}


def test_failed_save_leaves_the_old_checkpoint(make_trainer, monkeypatch):
    trainer = make_trainer(SHORT)
    trainer.initialize()
    path = Path(trainer.output_folder) / "c.pth"
    trainer.save_checkpoint(str(path))
    before = path.read_bytes()

    def broken(content, target):
        Path(target).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="no space left"):
        trainer.save_checkpoint(str(path))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.glob("c.pth*")] == ["c.pth"]


def test_refuses_checkpoints_of_others(make_trainer):
    trainer = make_trainer(SHORT)
    trainer.initialize()
    path = os.path.join(trainer.output_folder, "c.pth")
    content = stock_state(trainer)
    torch.save(content, path)
    with pytest.raises(RuntimeError, match="has no second network"):
        make_trainer(SHORT).load_checkpoint(path)
    torch.save(content | {"trainer_name": "nnUNetTrainer"}, path)
    with pytest.raises(RuntimeError, match=f"was written by nnUNetTrainer, but {SHORT} was asked to load it"):
        make_trainer(SHORT).load_checkpoint(path)
    Path(path).write_bytes(Path(path).read_bytes()[:1000])
    with pytest.raises(RuntimeError, match="is not a whole nnU-Net checkpoint"):
        make_trainer(SHORT).load_checkpoint(path)


def test_refuses_the_cascade(make_trainer):
    with pytest.raises(NotImplementedError, match="cannot train 3d_cascade_fullres.*Train 3d_fullres instead"):
        make_trainer(configuration="3d_cascade_fullres").initialize()


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("lr_schedule", "cosine", "lr_schedule must be 'poly' or 'plateau', got 'cosine'"),
        ("ramp_fraction", 2.0, "ramp_fraction must lie between 0 and 1, got 2.0"),
    ],
)
def test_refuses_settings_without_meaning(make_trainer, setting, value, message):
    trainer = make_trainer()
    setattr(trainer, setting, value)
    with pytest.raises(ValueError, match=message):
        trainer.initialize()


def test_pretrained_weights_reach_both_networks_but_not_the_heads(make_trainer):
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    plain = make_trainer(cls=nnUNetTrainer)
    plain.initialize()
    path = os.path.join(plain.output_folder, "pretrained.pth")
    plain.save_checkpoint(path)
    trainer = make_trainer(SHORT)
    trainer.initialize()
    heads = {k: v for k, v in weights(trainer.network_2).items() if ".seg_layers." in k}
    load_pretrained_weights(trainer.network, path)
    trainer.after_pretrained_weights(path)
    body = {k: v for k, v in weights(plain.network).items() if ".seg_layers." not in k}
    assert same(body, weights(trainer.network))
    assert same(body, weights(trainer.network_2))
    assert same(heads, weights(trainer.network_2))
    assert "same output everywhere" not in Path(trainer.log_file).read_text()
    trainer.network_2.load_state_dict(trainer.network.state_dict())
    torch.save({"network_weights": trainer.network.state_dict()}, path)
    trainer.after_pretrained_weights(path)
    assert "both networks give the same output everywhere" in Path(trainer.log_file).read_text()


def test_missing_class_is_warned_of_in_the_log(make_trainer):
    trainer = make_trainer("nnUNetTrainerCPS_3epochs_1iterations")
    trainer.missing_class_patience = 2
    trainer.initialize()
    counts = np.array([[90.0, 10, 0]] * 3)
    outputs = [{"loss": 1.0, "loss_2": 1.0, "cps": 1.0, "counts": counts, "labelled_counts": np.array([80.0, 10, 10])}]
    for epoch in range(2):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_end(outputs)
    log = Path(trainer.log_file).read_text()
    assert log.count("WARNING: right missing from the pseudo-labels for 2 epochs or more") == 1


def test_second_network_is_validated_on_the_same_patches(make_trainer):
    trainer = make_trainer(SHORT, kind="ignore")
    trainer.initialize()
    _, loader = trainer.get_dataloaders()
    batch = next(loader)
    trainer.network_2.load_state_dict(trainer.network.state_dict())
    trainer.on_validation_epoch_start()
    with torch.no_grad():
        report = trainer.validation_step(deepcopy(batch))
    assert np.array_equal(report["tp_hard"], report["tp_hard_2"])
    assert np.array_equal(report["fp_hard"], report["fp_hard_2"])
    assert report["loss"] == pytest.approx(report["loss_2"])


def test_deep_supervision_is_switched_in_every_network(make_trainer):
    trainer = make_trainer()
    trainer.initialize()
    trainer.set_deep_supervision_enabled(False)
    assert not trainer.network.decoder.deep_supervision
    assert not trainer.network_2.decoder.deep_supervision
    second_network.set_deep_supervision([AverageOfNetworks(trainer.network, trainer.network_2)], True)
    assert trainer.network.decoder.deep_supervision


def test_stock_predictor_rebuilds_network_1_from_the_checkpoint_alone(make_trainer):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    trainer = train(make_trainer(SHORT))
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), "checkpoint_final.pth")
    assert same(weights(trainer.network), weights(predictor.network))
    assert predictor.plans_manager.plans["configurations"]["2d"]["preprocessor_name"] == "DefaultPreprocessor"


def test_progress_png_is_wider_than_nnunets(make_trainer, monkeypatch):
    import matplotlib
    from PIL import Image

    monkeypatch.setitem(matplotlib.rcParams, "savefig.dpi", 20)  # of the 30 x 54 inches of nnU-Net
    monkeypatch.setattr(
        MetaLogger, "plot_progress_png", lambda self, folder: self.local_logger.plot_progress_png(folder)
    )
    trainer = train(make_trainer(SHORT))
    with Image.open(Path(trainer.output_folder) / "progress.png") as picture:
        assert picture.width > 1.5 * 600
        right = np.asarray(picture.convert("RGB").crop((600, 0, *picture.size)).resize((400, 400)))
    assert right.std() > 5


def test_withheld_labels_refuse_fold_all(make_trainer, environment):
    import json

    make_trainer()
    splits = [{"train": ["case_0", "case_1"], "val": ["case_2"], "unlabeled": ["case_3"]}]
    (environment / "preprocessed" / tiny.NAME / "splits_final.json").write_text(json.dumps(splits))
    with pytest.raises(ValueError, match="withholds labels"):
        make_trainer(fold="all").initialize()


@pytest.mark.parametrize(("units", "switch", "warned"), [(False, "1", True), (True, "1", False), (False, "0", False)])
def test_bf16_in_software_is_warned_of(make_trainer, monkeypatch, units, switch, warned):
    monkeypatch.setenv("nnUNet_ext_cpu_bf16", switch)
    monkeypatch.setattr("nnunet_ext.trainers.base.cpu_has_bf16_units", lambda: units)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    trainer = make_trainer("nnUNetTrainerCWCD")
    trainer.initialize()
    log = Path(trainer.log_file).read_text()
    assert ("nnUNet_ext_cpu_bf16=1, but this CPU has no bfloat16 units" in log) is warned


class Under(torch.nn.Module):
    """A module that computes in a context of its own."""

    def __init__(self, module, context):
        super().__init__()
        self.module, self.context = module, context

    def forward(self, *arguments):
        with self.context():
            return self.module(*arguments)


def test_bfloat16_of_the_forward_pass_alone_gives_the_same_training(make_trainer, monkeypatch):
    """On CPUs nnU-Net's whole step, backward pass and optimiser too, lies in the context; that changes no number."""
    monkeypatch.setenv("nnUNet_ext_cpu_bf16", "1")
    trained = []
    for alone in (False, True):
        trainer = make_trainer("nnUNetTrainerCWCD")
        trainer.initialize()
        loader, _ = trainer.get_dataloaders()
        loss = Under(trainer.loss, trainer.autocast)
        for _ in range(3):
            if alone:
                trainer.loss = loss
                with trainer.using_network(Under(trainer.network, trainer.autocast)):
                    nnUNetTrainer.train_step(trainer, next(loader))
            else:
                trainer.train_step(next(loader))
        trained.append(weights(trainer.network))
    assert same(*trained)

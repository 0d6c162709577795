"""The part Propagation inside nnU-Net's trainer."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from reference import tiny

from nnunet_ext.networks import SpaceTimeNetwork
from nnunet_ext.plugin import compat
from nnunet_ext.trainers import _propagation_validation as validation
from nnunet_ext.trainers.names import find_trainer
from nnunet_ext.training.architecture import NESTED, SPACE_TIME

NAME = "nnUNetTrainerPropagation"
SHORT = f"{NAME}_1epochs_1iterations"
# nnU-Net divides by zero where a class is neither in a batch nor predicted
pytestmark = pytest.mark.filterwarnings(
    "ignore:invalid value encountered:RuntimeWarning", "ignore:Mean of empty slice:RuntimeWarning"
)


def changed(name=SHORT, **settings):
    """A subclass with other settings, as users write it."""

    def set_defaults(self):
        super(cls, self).set_defaults()
        for setting, value in settings.items():
            setattr(self, setting, value)

    cls = type(name, (find_trainer(name),), {"set_defaults": set_defaults})
    return cls


def stopped(name):
    """A trainer that is stopped after its first epoch."""

    def on_epoch_end(self):
        self.save_every = 1
        super(cls, self).on_epoch_end()
        raise KeyboardInterrupt

    cls = type(name, (find_trainer(name),), {"on_epoch_end": on_epoch_end})
    return cls


def plain(network):
    return getattr(network, "_orig_mod", network)


@pytest.mark.parametrize("kind", ["labels", "regions_ignore"])
def test_trains_and_is_rebuilt_from_what_is_saved(make_trainer, kind):
    trainer = make_trainer(SHORT, "2d", kind)
    trainer.run_training()
    curves = compat.logged_curves(trainer.logger)
    assert np.isfinite([curves["train_losses"], curves["val_losses"]]).all()
    assert len(curves["dice_per_class_or_region"][0]) == 2  # exclusive labels, of regions too
    saved = json.loads((Path(trainer.output_folder_base) / "plans.json").read_text())
    manager = PlansManager(saved)
    assert manager.get_configuration("2d").network_arch_class_name == SPACE_TIME
    rebuilt = type(trainer).build_network_architecture(manager, manager.get_configuration("2d"), 1, 3, False)
    checkpoint = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=False)
    rebuilt.load_state_dict(checkpoint["network_weights"])
    assert isinstance(rebuilt, SpaceTimeNetwork)
    with pytest.raises(ValueError, match="a propagation model segments nothing alone"):
        rebuilt(torch.randn(1, 1, 16, 16))


def test_a_few_steps_lower_the_loss(make_trainer):
    content = tiny.plans()
    content["configurations"]["2d"]["patch_size"] = [32, 32]
    neighbours = changed(initial_lr=1e-2, propagation_gaps=((0, 0),))  # which have the objects, too
    trainer = make_trainer(cls=neighbours, configuration="2d", plans=content)
    trainer.initialize()
    trainer.network.train()
    loader, _ = trainer.get_dataloaders()
    batch = next(loader)
    losses = [float(trainer.train_step(batch)["loss"]) for _ in range(30)]
    assert losses[-1] < 0.3 * losses[0]
    found = trainer.validation_step(batch)
    dice = 2 * found["tp_hard"].sum() / (2 * found["tp_hard"] + found["fp_hard"] + found["fn_hard"]).sum()
    assert dice > 0.8


def test_optimiser_batch_and_settings(make_trainer):
    trainer = make_trainer(NAME, "2d")
    trainer.configuration_manager.configuration["batch_size"] = 13
    trainer.num_epochs = 10
    trainer.initialize()
    assert trainer.batch_size == 4
    assert type(trainer.optimizer) is torch.optim.AdamW
    assert isinstance(trainer.lr_scheduler, PolyLRScheduler)
    (group,) = trainer.optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-4, (0.937, 0.999), 1e-7)
    assert len(group["params"]) == len(list(trainer.network.parameters()))
    logged = trainer.hyperparameters()
    assert (logged["triples_of_step"], logged["propagation_clip"], logged["propagation_pixel_loss"]) == (
        4,
        12.0,
        "ohem",
    )
    assert logged["propagation_gaps"][0] == (0.0, 25)
    few = make_trainer(NAME, "2d")
    few.initialize()
    assert few.batch_size == 2  # a third of the plans' 2 would be none


@pytest.mark.parametrize("clip", [1e-3, 12.0])
def test_gradients_are_clipped(make_trainer, clip):
    trainer = make_trainer(cls=changed(propagation_clip=clip), configuration="2d")
    trainer.initialize()
    trainer.train_step(next(trainer.get_dataloaders()[0]))
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in trainer.network.parameters()])
    assert float(norm) == pytest.approx(clip, rel=1e-3) if clip < 1 else float(norm) < clip


def test_bfloat16_on_cpus(make_trainer):
    trainer = make_trainer(cls=changed(cpu_bf16=True), configuration="2d")
    trainer.initialize()
    seen = []
    hook = trainer.network.value_fusion[0].own if hasattr(trainer.network.value_fusion[0], "own") else None
    layer = hook or trainer.network.key_projection
    layer.register_forward_hook(lambda module, given, made: seen.append(made.dtype))
    assert np.isfinite(trainer.train_step(next(trainer.get_dataloaders()[0]))["loss"])
    assert set(seen) == {torch.bfloat16}


def test_a_training_that_goes_on_ends_as_one_that_was_not_stopped(make_trainer):
    name = f"{NAME}_3epochs_2iterations"
    whole = make_trainer(name, "2d")
    whole.run_training()
    expected = {key: value.clone() for key, value in whole.network.state_dict().items()}
    curves = {key: list(values) for key, values in compat.logged_curves(whole.logger).items()}
    first = make_trainer(cls=stopped(name), configuration="2d")
    with pytest.raises(KeyboardInterrupt):
        first.run_training()
    second = make_trainer(name, "2d")
    second.load_checkpoint(str(Path(first.output_folder) / "checkpoint_latest.pth"))
    assert second.current_epoch == 1
    second.run_training()
    assert all(torch.equal(value, expected[key]) for key, value in second.network.state_dict().items())
    for key in ("train_losses", "val_losses", "lrs"):
        assert compat.logged_curves(second.logger)[key] == curves[key]


def test_trainings_repeat_and_seeds_matter(make_trainer):
    def losses(seed):
        trainer = make_trainer(SHORT, "2d")
        trainer.seed = seed
        trainer.run_training()
        return compat.logged_curves(trainer.logger)["train_losses"]

    assert losses(0) == losses(0) != losses(1)


def test_it_takes_the_place_of_any_2d_network(make_trainer):
    content = tiny.plans()
    nested = content["configurations"]["2d"]["architecture"]
    content["configurations"]["2d"]["architecture"] = nested | {"network_class_name": NESTED}
    before = json.dumps(content)
    trainer = make_trainer(NAME, "2d", plans=content)
    named = trainer.configuration_manager.configuration["architecture"]
    assert named["network_class_name"] == SPACE_TIME
    assert "n_stages" not in named["arch_kwargs"]
    assert json.dumps(content) == before
    again = make_trainer(NAME, "2d", plans=trainer.plans_manager.plans)  # of the model
    assert again.plans_manager.plans["configurations"] == trainer.plans_manager.plans["configurations"]


def test_what_plans_say_of_the_input_stays(make_trainer):
    content = tiny.plans()
    arguments = content["configurations"]["2d"]["architecture"]["arch_kwargs"]
    arguments |= {"windows": [[-150, 250], [-500, 1300]], "hounsfield_channels": [0], "position": False}
    trainer = make_trainer(SHORT, "2d", plans=content)
    trainer.run_training()
    assert plain(trainer.network).reference_input.output_channels == 2
    assert np.isfinite(trainer.logger.get_value("train_losses", -1))


def test_other_settings_are_refused(make_trainer, monkeypatch):
    trainer = make_trainer(SHORT, "2d")
    trainer.run_training()
    saved = json.loads((Path(trainer.output_folder_base) / "plans.json").read_text())
    cls = type(trainer)
    monkeypatch.setattr(cls, "propagation_key_dim", 12)
    with pytest.raises(RuntimeError, match="was trained with key_dim = 8, but .* has 12 now; set it back, or"):
        make_trainer(cls=cls, configuration="2d").initialize()
    with pytest.raises(ValueError, match="already name .*SpaceTimeNetwork with key_dim = 8, but"):
        make_trainer(cls=cls, configuration="2d", plans=saved)


def test_3d_configurations(make_trainer, environment):
    make_trainer(NAME, "2d")
    before = sorted((environment / "results").rglob("*"))
    with pytest.raises(ValueError, match="from slice to slice, but the patches .* are 16 x 12 x 16; train the config"):
        find_trainer(NAME)(tiny.plans(), "3d_fullres", 0, tiny.dataset_json(), torch.device("cpu"))
    assert sorted((environment / "results").rglob("*")) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"enable_deep_supervision": True}, "Propagation has one output, but enable_deep_supervision is True; leave"),
        ({"propagation_pixel_loss": "focal"}, "propagation_pixel_loss must be one of ohem, bootstrapped, got 'focal'"),
        ({"propagation_triples": 1}, r"must be None \(a third of the plans' batch\) or a whole number from 2, got 1"),
        ({"propagation_triples": 2.5}, "or a whole number from 2, got 2.5"),
        ({"propagation_clip": 0.0}, r"propagation_clip must be above 0 \(nnU-Net's is 12\), got 0.0"),
        ({"propagation_gaps": ()}, "propagation_gaps must be pairs of a share of the training, rising from 0"),
        ({"propagation_gaps": ((0.1, 3),)}, r"e.g. \(\(0, 25\), \(0.1, 3\)\), got \(\(0.1, 3\),\)"),
        ({"propagation_gaps": ((0, 3), (0.5, -1))}, "propagation_gaps must be pairs"),
        ({"propagation_gaps": ((0, 3), (0.5, 2), (0.4, 1))}, "propagation_gaps must be pairs"),
        ({"propagation_gaps": 25}, "propagation_gaps must be pairs .* got 25"),
    ],
)
def test_settings_without_sense(make_trainer, settings, message):
    trainer = make_trainer(cls=changed(**settings), configuration="2d")
    with pytest.raises(ValueError, match=message):
        trainer.initialize()
    assert trainer.network is None


def test_plans_that_name_it_need_the_part(make_trainer):
    content = make_trainer(NAME, "2d").plans_manager.plans
    trainer = make_trainer("nnUNetTrainerCPS", "2d", plans=content)
    with pytest.raises(ValueError, match="name the network of the part Propagation, which nnUNetTrainerCPS does not"):
        trainer.initialize()


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_weights_of_both_encoders(make_trainer, tmp_path, ending):
    trainer = make_trainer(NAME, "2d")
    torch.manual_seed(7)
    manager, configuration = trainer.plans_manager, trainer.configuration_manager
    others = trainer.build_network_architecture(manager, configuration, 3, 3, False)
    files = {}
    for setting, encoder in (("key", others.encoder), ("value", others.value_encoder)):
        weights = {key: value.clone() for key, value in encoder.state_dict().items()}
        weights["conv1.weight"] = weights["conv1.weight"][:, :3].clone()
        files[setting] = weights
        file = tmp_path / f"{setting}.{ending}"
        if ending == "pth":
            torch.save(weights, file)
        else:
            from safetensors.torch import save_file

            save_file(weights, file)
        setattr(trainer, f"propagation_{setting}_weights", str(file))
    trainer.initialize()
    network = plain(trainer.network)
    for setting, encoder in (("key", network.encoder), ("value", network.value_encoder)):
        state = encoder.state_dict()
        expected = files[setting]["conv1.weight"].sum(1, keepdim=True)
        torch.testing.assert_close(state["conv1.weight"][:, :1], expected)
        assert all(torch.equal(state[key], files[setting][key]) for key in state if key != "conv1.weight")
    assert network.value_encoder.conv1.weight.shape[1] == 3  # the image, and two masks, which begin at random
    assert network.value_encoder.conv1.weight[:, 1:].std() > 0
    log = Path(trainer.log_file).read_text()
    assert "propagation_value_weights: conv1.weight: its last 2 channels, which the file does not have, begin at" in log

    checkpoint = str(tmp_path / "checkpoint.pth")
    trainer.save_checkpoint(checkpoint)
    again = make_trainer(NAME, "2d")
    again.propagation_key_weights = str(tmp_path / "gone.pth")
    again.load_checkpoint(checkpoint)
    other = make_trainer(NAME, "2d")
    other.propagation_value_weights = str(tmp_path / f"key.{ending}")
    with pytest.raises(
        ValueError, match=r"propagation_value_weights .*key\..* does not fit the encoder: layer1.0.conv1"
    ):
        other.initialize()
    assert other.network is None


def test_the_network_is_compiled_only_if_asked_for(make_trainer, monkeypatch):
    monkeypatch.setattr(compat, "compiles", lambda trainer: True)
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda network, **options: compiled.append(network) or network)
    make_trainer(NAME, "2d").initialize()
    assert not compiled
    make_trainer(cls=changed(propagation_compiled=True), configuration="2d").initialize()
    assert len(compiled) == 1


def test_nothing_is_drawn_of_the_network(make_trainer):
    trainer = make_trainer(NAME, "2d")
    trainer.initialize()
    trainer.plot_network_architecture()
    assert "Unable to plot" not in Path(trainer.log_file).read_text()


def propagated(trainer, data):
    """Let the stand-in of nnU-Net's predictor see a case as nnU-Net's validation shows it, and return its logits."""
    references = validation.TrueReferences(trainer)
    references.manual_initialization(trainer.network, trainer.plans_manager)
    dataset = references.remembering(trainer.dataset_class)(trainer.preprocessed_dataset_folder, ["case_0"])
    image, labels, *_ = dataset.load_case("case_0")
    logits = references.predict_sliding_window_return_logits(torch.from_numpy(image[:]) if data is None else data)
    references.bar.close()
    return logits, labels[:][0], references


@pytest.mark.parametrize("kind", ["labels", "regions_ignore"])
def test_validation_gives_the_largest_slice_of_each_class(make_trainer, kind):
    trainer = make_trainer(NAME, "2d", kind)
    trainer.initialize()
    logits, labels, references = propagated(trainer, None)
    assert logits.shape == (2 if kind == "regions_ignore" else 3, *labels.shape)
    areas = np.array([(labels == label).sum((1, 2)) for label in (1, 2)])
    given = sorted(set(areas.argmax(1).tolist()))
    assert references.slices == [(len(labels), len(given))]
    segmented = trainer.label_manager.convert_logits_to_segmentation(logits).numpy()
    for index in given:
        valid = labels[index] != 3
        assert (segmented[index][valid] == labels[index][valid]).all()
        assert (segmented[index][~valid] == 0).all()


def test_a_case_without_classes_is_background(make_trainer):
    trainer = make_trainer(NAME, "2d")
    trainer.initialize()
    references = validation.TrueReferences(trainer)
    references.manual_initialization(trainer.network)
    references.labels = np.full((1, 4, 16, 16), -1, np.int8)
    logits = references.predict_sliding_window_return_logits(torch.randn(1, 4, 16, 16))
    assert (logits.argmax(0) == 0).all()
    assert references.slices == [(4, 0)]


def test_probabilities_become_logits_of_heads():
    from types import SimpleNamespace

    probabilities = torch.tensor([0.1, 0.5, 0.4]).half().view(3, 1, 1, 1)
    found = SimpleNamespace(classes=(1, 3), probabilities=probabilities)
    labels = SimpleNamespace(has_regions=False, all_labels=[0, 1, 2, 3])
    logits = validation.logits_of_heads(found, (1, 1, 1), labels).float()
    assert logits.softmax(0).flatten().tolist() == pytest.approx([0.1, 0.5, 0, 0.4], abs=1e-3)
    regions = SimpleNamespace(has_regions=True, foreground_regions=[(1, 2, 3), 3, (2,)])
    logits = validation.logits_of_heads(found, (1, 1, 1), regions).float()
    assert logits.sigmoid().flatten().tolist() == pytest.approx([0.9, 0.4, 0], abs=1e-3)


def test_a_validation_that_does_not_ask_is_refused(make_trainer):
    trainer = make_trainer(NAME, "2d")
    trainer.initialize()
    before = trainer.dataset_class
    with pytest.raises(RuntimeError, match="did not ask for the propagated labels.* made for"):
        validation.validate(trainer, lambda: None)
    assert trainer.dataset_class is before


def test_references_of_preprocessed_labels():
    """-1 is background that nnU-Net masked out; what does not count must be no class."""
    labels = np.array([[[-1, 0, 2, 3]]], np.int8)
    assert validation.reference_labels(labels, None).tolist() == [[[0, 0, 2, 3]]]
    assert validation.reference_labels(labels, 3).tolist() == [[[0, 0, 2, -1]]]

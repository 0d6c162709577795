"""The parts of a mean teacher inside nnU-Net's trainer."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from reference import tiny
from reference.gates import GateOf
from reference.taught import ready, same, weights

from nnunet_ext.training.checkpoints import TEACHING

SHORT = "nnUNetTrainerMeanTeacher_CutMix_Confidence_ClassBalance_4epochs_2iterations"
PLAIN = "nnUNetTrainerMeanTeacher_4epochs_2iterations"


@pytest.mark.parametrize(
    ("configuration", "kind"),
    [
        ("3d_fullres", "labels"),
        ("2d", "labels"),
        ("3d_fullres", "ignore"),
        ("2d", "regions"),
        ("3d_fullres", "regions_ignore"),
    ],
)
def test_trains_and_restores(make_trainer, configuration, kind):
    trainer = make_trainer(SHORT, configuration, kind)
    trainer.run_training()
    curves = trainer.logger.get_checkpoint()
    assert {len(values) for values in curves.values()} == {4}
    # warm-up round(0.4) = 0, ramp round(1.6) = 2 epochs, ramp-down round(0.6) = 1 epoch
    assert curves["unlabeled_weight"] == pytest.approx([0.25, 0.5, 0.5, 0.05])
    assert np.isfinite(curves["supervised_loss"]).all()
    assert np.isfinite(curves["unlabeled_loss"]).all()
    restored = make_trainer(SHORT, configuration, kind)
    restored.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    assert same(weights(trainer.network), weights(restored.network))
    assert same(weights(trainer.teacher.network), weights(restored.teacher.network))
    assert not same(weights(trainer.network), weights(trainer.teacher.network))


@pytest.mark.parametrize("setting", [("unlabeled_weight", 0.0), ("use_unlabeled", False)])
@pytest.mark.parametrize("name", [PLAIN, SHORT])
def test_without_pseudo_labels_the_student_is_nnunets_network(make_trainer, setting, name):
    trainer = make_trainer(name)
    setattr(trainer, *setting)
    trainer, loader = ready(trainer)
    plain = make_trainer(cls=nnUNetTrainer)
    plain.initialize()
    plain.set_deep_supervision_enabled(True)
    plain.network.load_state_dict(trainer.network.state_dict())
    for _ in range(4):
        batch = next(loader)
        report = plain.train_step({"data": batch["data"], "target": deepcopy(batch["target"])})
        assert trainer.train_step(batch)["loss"] == pytest.approx(float(report["loss"]), rel=1e-6)
    assert same(weights(trainer.network), weights(plain.network))


def test_the_teacher_is_the_running_mean_and_has_no_gradient(make_trainer):
    trainer, loader = ready(make_trainer(PLAIN))
    mean = None
    for step in range(4):
        trainer.train_step(next(loader))
        assert all(parameter.grad is None for parameter in trainer.teacher.network.parameters())
        decay = min(0.99, 1 - 1 / (step + 1))
        now = weights(trainer.network)
        mean = now if mean is None else {key: decay * mean[key] + (1 - decay) * now[key] for key in now}
    for key, value in weights(trainer.teacher.network).items():
        torch.testing.assert_close(value, mean[key], rtol=1e-5, atol=1e-6)


def test_the_teacher_sees_the_weak_view_and_the_student_the_strong_one(make_trainer):
    trainer, loader = ready(make_trainer(PLAIN))
    seen = {}
    for name, network in (("student", trainer.network), ("teacher", trainer.teacher.network)):
        network.register_forward_pre_hook(lambda _, images, name=name: seen.update({name: images[0].clone()}))
    batch = next(loader)
    trainer.train_step(batch)
    assert torch.equal(seen["teacher"], batch["unlabeled"])
    assert torch.equal(seen["student"], torch.cat([batch["data"], batch["unlabeled_strong"]]))
    assert not torch.equal(batch["unlabeled"], batch["unlabeled_strong"])


def test_boxes_move_images_labels_and_masks_alike(make_trainer):
    trainer = make_trainer("nnUNetTrainerMeanTeacher_CutMix_4epochs_2iterations")
    trainer.cutmix_probability = 1.0
    trainer, loader = ready(trainer)
    batch = next(loader)
    # The donor is the other patch of the two; where the mixed image has its voxels, labels and masks are its own.
    state = trainer.mixer.state_dict()
    mixed = trainer.teaching_step.pseudo_labelled(batch)
    trainer.mixer.load_state_dict(state)
    again = trainer.teaching_step.pseudo_labelled(batch)
    assert torch.equal(mixed.images, again.images)
    trainer.teaching_step.mixer = None
    unmixed = trainer.teaching_step.pseudo_labelled(batch)
    exchanged = (mixed.images != unmixed.images).any(1, keepdim=True)
    assert 0.05 < exchanged.float().mean() < 0.5
    for name in ("images", "labels", "kept", "valid"):
        before, after = getattr(unmixed, name), getattr(mixed, name)
        assert torch.equal(after, torch.where(exchanged, before.roll(-1, 0), before)), name


def test_a_gate_that_keeps_nothing_leaves_the_labels_alone(make_trainer):
    trainer = make_trainer(PLAIN)
    trainer, loader = ready(trainer)
    trainer.teaching_step.gate = GateOf(lambda logits, labels, *_: torch.zeros_like(labels, dtype=torch.bool))
    report = trainer.train_step(next(loader))
    assert report["unlabeled_loss"] == 0
    assert report["kept_counts"].sum() == 0
    assert report["nothing_kept"] == 1
    assert report["counts"][0].sum() > 0


def test_a_training_that_goes_on_takes_the_same_next_step(make_trainer, tmp_path):
    trainer, loader = ready(make_trainer(SHORT))
    batches = [next(loader) for _ in range(4)]
    for batch in batches[:2]:
        trainer.train_step(deepcopy(batch))
    trainer.save_checkpoint(str(tmp_path / "c.pth"))
    restored = make_trainer(SHORT)
    restored.initialize()
    restored.load_checkpoint(str(tmp_path / "c.pth"))
    restored.current_epoch = trainer.current_epoch
    restored.network.train()
    for batch in batches[2:]:
        first, second = (one.train_step(deepcopy(batch)) for one in (trainer, restored))
        assert first["loss"] == second["loss"]
        assert first["unlabeled_loss"] == second["unlabeled_loss"]
    assert same(weights(trainer.network), weights(restored.network))
    assert same(weights(trainer.teacher.network), weights(restored.teacher.network))


def test_the_model_is_the_teacher(make_trainer, tmp_path):
    trainer, loader = ready(make_trainer(PLAIN))
    for _ in range(3):
        trainer.train_step(next(loader))
    trainer.on_train_start()  # writes plans and dataset.json
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    checkpoint = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=False)
    assert same(checkpoint["network_weights"], weights(trainer.teacher.network))
    assert same(checkpoint[TEACHING]["student"], weights(trainer.network))
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (trainer.fold,), "checkpoint_final.pth")
    assert same(predictor.list_of_parameters[0], weights(trainer.teacher.network))


def test_validation_is_the_teachers(make_trainer):
    trainer, _ = ready(make_trainer(PLAIN))
    with torch.no_grad():
        for parameter in trainer.network.parameters():
            parameter.zero_()
    trainer.on_validation_epoch_start()
    generator = torch.Generator().manual_seed(1)
    patch = trainer.configuration_manager.patch_size
    scales = trainer._get_deep_supervision_scales()
    target = [
        torch.randint(0, 3, (2, 1, *(round(p * s) for p, s in zip(patch, scale, strict=True))), generator=generator)
        for scale in scales
    ]
    batch = {"data": torch.randn((2, 1, *patch), generator=generator), "target": target}
    report = trainer.validation_step(batch)
    plain = make_trainer(cls=nnUNetTrainer)
    plain.initialize()
    plain.network.load_state_dict(trainer.teacher.network.state_dict())
    plain.network.eval()
    plain.set_deep_supervision_enabled(True)
    expected = plain.validation_step({"data": batch["data"], "target": deepcopy(target)})
    assert report["loss"] == pytest.approx(float(expected["loss"]), rel=1e-6)
    assert np.array_equal(report["tp_hard"], expected["tp_hard"])
    assert not np.array_equal(report["tp_hard_student"], report["tp_hard"])


def test_pretrained_weights_are_the_teachers_too(make_trainer, tmp_path):
    source = make_trainer("nnUNetTrainer_1epochs_1iterations")
    source.initialize()
    source.save_checkpoint(str(tmp_path / "w.pth"))
    trainer = make_trainer(PLAIN)
    trainer.initialize()
    trainer.network.load_state_dict(source.network.state_dict())
    trainer.after_pretrained_weights(str(tmp_path / "w.pth"))
    assert same(weights(trainer.teacher.network), weights(source.network))


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("unlabeled_weight", -1, "unlabeled_weight must be 0 or more, got -1"),
        ("ema_decay", 1.0, r"ema_decay must be None or lie in \[0, 1\), got 1.0"),
        ("cutmix_probability", 1.5, "cutmix_probability must lie between 0 and 1, got 1.5"),
        ("cutmix_share", (0.5, 0.2), r"cutmix_share must be two shares.*got \(0.5, 0.2\)"),
        ("cutmix_shape", "ball", "cutmix_shape must be one of box, slab, got 'ball'"),
        ("confidence_gate", "none", "confidence_gate must be one of global, per_class, got 'none'"),
        ("confidence_threshold", 1.0, r"confidence_threshold must be None or lie in \[0, 1\), got 1.0"),
        ("confidence_keep", 0, r"confidence_keep must lie in \(0, 1\], got 0"),
        ("class_balance_gamma", 2.0, "class_balance_gamma must lie between 0 and 1, got 2.0"),
        ("class_sampling_refresh", -1, "class_sampling_refresh must be a whole number of at least 0, got -1"),
        ("class_sampling_refresh", 20, "class_sampling_refresh must be below the 20 epochs of the training, got 20"),
        ("class_sampling_cases", 0, "class_sampling_cases must be a whole number of at least 1, got 0"),
        ("class_sampling_share", 2, "class_sampling_share must lie above 0 and be 1 at most, got 2"),
        ("warmup_fraction", 0.5, "warmup_fraction"),
        ("ramp_down_fraction", 0.9, "ramp_down_fraction"),
    ],
)
def test_settings_that_make_no_sense(make_trainer, setting, value, message):
    trainer = make_trainer("nnUNetTrainerMeanTeacher_CutMix_Confidence_ClassBalance_20epochs")
    setattr(trainer, setting, value)
    with pytest.raises(ValueError, match=message):
        trainer.initialize()


def test_a_batch_of_one_is_not_mixed(make_trainer):
    plans = tiny.plans()
    plans["configurations"]["3d_fullres"]["batch_size"] = 1
    trainer = make_trainer("nnUNetTrainerMeanTeacher_CutMix_4epochs_2iterations", plans=plans)
    trainer.initialize()
    assert trainer.mixer is None
    assert "WARNING: CutMix exchanges boxes" in Path(trainer.log_file).read_text()


def test_a_checkpoint_of_cps_is_refused(make_trainer, tmp_path):
    other = make_trainer("nnUNetTrainerCPS_2epochs_2iterations")
    other.initialize()
    other.save_checkpoint(str(tmp_path / "c.pth"))
    with pytest.raises(RuntimeError, match="was written by nnUNetTrainerCPS_2epochs_2iterations"):
        make_trainer(PLAIN).load_checkpoint(str(tmp_path / "c.pth"))


def test_without_unlabelled_cases_one_clear_error(make_trainer, environment):
    trainer = make_trainer(PLAIN)
    folder = environment / "preprocessed" / tiny.NAME / f"{tiny.PLANS}_3d_fullres_unlabeled"
    for file in folder.glob("*.json"):
        file.unlink()
    trainer.initialize()
    with pytest.raises(FileNotFoundError, match=r"no preprocessed unlabelled case in .*Run: nnUNetv2_ext preprocess"):
        trainer.get_dataloaders()


def test_off_values_of_the_parts_are_the_teacher_alone(make_trainer):
    """No box, no threshold, no guard, no weight: the same steps as without the parts, bit for bit."""
    name = "nnUNetTrainerMeanTeacher_CutMix_Confidence_ClassBalance_4epochs_2iterations"
    parts, alone = make_trainer(name), make_trainer(PLAIN)
    parts.cutmix_probability, parts.confidence_threshold, parts.confidence_guard = 0.0, 0.0, False
    parts.class_balance_gamma = 0.0
    (parts, loader), (alone, _) = ready(parts), ready(alone)
    alone.network.load_state_dict(parts.network.state_dict())
    alone.teacher.network.load_state_dict(parts.teacher.network.state_dict())
    for _ in range(3):
        batch = next(loader)
        first, second = (trainer.train_step(deepcopy(batch)) for trainer in (parts, alone))
        assert first["unlabeled_loss"] == second["unlabeled_loss"] != 0
    assert same(weights(parts.network), weights(alone.network))


def test_rare_classes_weigh_more(make_trainer):
    trainer, loader = ready(make_trainer("nnUNetTrainerMeanTeacher_ClassBalance_4epochs_2iterations"))
    background, left, right = trainer.balance.weights().tolist()
    assert background < 1 < min(left, right)
    trainer.train_step(next(loader))
    assert trainer.balance.state_dict()["pseudo"].sum() > 0


def test_a_class_that_no_case_has_is_named(make_trainer):
    trainer = make_trainer("nnUNetTrainerMeanTeacher_ClassBalance_4epochs_2iterations")
    trainer.dataset_json["labels"]["nowhere"] = 3
    trainer.label_manager = trainer.plans_manager.get_label_manager(trainer.dataset_json)
    trainer.initialize()
    assert "no labelled case of this fold has nowhere" in Path(trainer.log_file).read_text()


def test_a_drift_is_warned_of(make_trainer):
    trainer, _ = ready(make_trainer("nnUNetTrainerMeanTeacher_40epochs_2iterations"))
    report = {"loss": 1.0, "unlabeled_loss": 1.0, "kept_counts": np.ones(3), "labelled_counts": np.ones(3)}

    def epoch(number, counts):
        trainer.current_epoch = number
        trainer.logger.log("train_losses", 1.0, number)
        values = trainer.monitor.epoch([report | {"counts": np.array([counts] * 3, float)}], 0.5, False)
        ramped = number + 1 >= 16
        return trainer.drift.observe(values["pseudo_label_share"], ramped)

    assert [epoch(number, [80, 10, 10]) for number in range(16, 26)] == [[]] * 10
    assert [1] in [epoch(number, [70, 20, 10]) for number in range(26, 30)]


def test_a_checkpoint_of_other_settings_is_continued_with_new_parts(make_trainer, tmp_path):
    """Fewer patches a process, or a weight of 0: then there was nothing to keep of a part."""
    trainer = make_trainer(SHORT)
    trainer.cutmix_probability, trainer.class_balance_gamma = 0.0, 0.0
    ready(trainer)
    trainer.save_checkpoint(str(tmp_path / "c.pth"))
    restored = make_trainer(SHORT)
    restored.load_checkpoint(str(tmp_path / "c.pth"))
    log = Path(restored.log_file).read_text()
    assert "has no mixer of pseudo-labels" in log
    assert "has no balance of pseudo-labels" in log


def test_other_processes_draw_boxes_of_their_own_when_they_go_on(make_trainer, tmp_path):
    trainer, _ = ready(make_trainer(SHORT))
    trainer.save_checkpoint(str(tmp_path / "c.pth"))
    second = make_trainer(SHORT)
    second.initialize()
    second.local_rank = 1
    second.load_checkpoint(str(tmp_path / "c.pth"))
    first, other = (one.mixer.generator.boxes((8, 8, 8), 4, probability=1.0) for one in (trainer, second))
    assert not torch.equal(first, other)


def test_validation_alone_needs_no_case_of_the_training(make_trainer, environment, tmp_path):
    trainer, _ = ready(make_trainer(SHORT))
    trainer.save_checkpoint(str(tmp_path / "c.pth"))
    (validation,) = trainer.get_tr_and_val_datasets()[1].identifiers
    for file in (environment / "preprocessed" / tiny.NAME / f"{tiny.PLANS}_3d_fullres").iterdir():
        if file.suffix != ".pkl" and not file.name.startswith(validation):
            file.unlink()
    restored = make_trainer(SHORT)
    restored.only_validates = True
    restored.load_checkpoint(str(tmp_path / "c.pth"))
    assert same(weights(restored.teacher.network), weights(trainer.teacher.network))


def test_a_validation_between_does_not_disturb_the_training(make_trainer, monkeypatch):
    def leaves_all_outputs(self, save_probabilities=False):
        self.set_deep_supervision_enabled(True)  # as nnU-Net's does at its end

    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", leaves_all_outputs)
    trainer, loader = ready(make_trainer(PLAIN))
    trainer.validate_student = False
    trainer.perform_actual_validation()
    assert trainer.teacher.network.decoder.deep_supervision is False
    trainer.train_step(next(loader))
    trainer.teacher.network.decoder.deep_supervision = True
    trainer.train_step(next(loader))


def test_networks_with_a_switch_of_their_own(make_trainer):
    """As in nnU-Net, who has another network overrides set_deep_supervision_enabled."""

    class Shell(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.inner = network
            self.inner.decoder.deep_supervision = True
            self.all_outputs = True

        def forward(self, images):
            outputs = self.inner(images)
            return outputs if self.all_outputs else outputs[0]

    base = type(make_trainer(PLAIN))

    class Mine(base):
        @classmethod
        def build_network_architecture(cls, *arguments, **options):
            return Shell(super().build_network_architecture(*arguments, **options))

        def set_deep_supervision_enabled(self, enabled):
            self.network.all_outputs = enabled

    trainer, loader = ready(make_trainer(cls=Mine))
    assert trainer.teacher.network.all_outputs is False
    assert trainer.train_step(next(loader))["unlabeled_loss"] != 0
    trainer.on_validation_epoch_start()
    assert trainer.teacher.network.all_outputs is True


def test_without_a_weight_no_unlabelled_case_is_asked_for(make_trainer, environment):
    trainer = make_trainer(PLAIN)
    for file in (environment / "preprocessed" / tiny.NAME / f"{tiny.PLANS}_3d_fullres_unlabeled").glob("*.json"):
        file.unlink()
    trainer.unlabeled_weight = 0.0
    _, loader = ready(trainer)
    assert "unlabeled" not in next(loader)


@pytest.mark.parametrize("kind", ["labels", "regions"])
def test_a_teacher_that_sees_nothing_is_warned_of(make_trainer, kind):
    trainer, _ = ready(make_trainer("nnUNetTrainerMeanTeacher_40epochs_2iterations", kind=kind))
    outputs = trainer.label_manager.num_segmentation_heads
    counts = np.zeros((3, outputs))
    counts[:2, 0] = 0 if kind == "regions" else 100
    report = {"loss": 1.0, "unlabeled_loss": 1.0, "kept_counts": np.zeros(outputs), "counts": counts}
    report["labelled_counts"] = np.ones(outputs)
    values = trainer.monitor.epoch([report], 0.5, False)
    missing = [trainer.monitor.missing_classes(values) for _ in range(4)][-1]
    assert missing == list(range(trainer.monitor.first_class, outputs))
    unseen = np.full(outputs, np.nan)
    assert trainer.drift.observe(unseen, True) == []
    assert trainer.drift.state_dict()["history"] == []


def test_a_guard_says_nothing_of_sparse_labels(make_trainer):
    trainer = make_trainer("nnUNetTrainerMeanTeacher_Confidence_4epochs_2iterations", kind="ignore")
    trainer.confidence_guard = True
    with pytest.raises(
        ValueError, match="confidence_guard compares with the share of each class in the labelled scans"
    ):
        trainer.initialize()


@pytest.mark.parametrize(
    ("kind", "expected"), [("labels", [1 - 128 / 5184, *[64 / 5184] * 2]), ("regions", [128 / 5184, 64 / 5184])]
)
def test_a_guard_compares_with_whole_scans(make_trainer, kind, expected):
    """Of 18 x 16 x 18 voxels each class has a box of 4 x 4 x 4; the patches hold more of them."""
    trainer = make_trainer("nnUNetTrainerMeanTeacher_Confidence_4epochs_2iterations", kind=kind)
    trainer.confidence_guard = True
    trainer, loader = ready(trainer)
    assert trainer.gate.labelled_share.tolist() == pytest.approx(expected)
    trainer.train_step(next(loader))
    assert not trainer.gate.missing().any()  # after one step nothing is known
    validating = make_trainer("nnUNetTrainerMeanTeacher_Confidence_4epochs_2iterations", kind=kind)
    validating.confidence_guard = validating.only_validates = True
    validating.initialize()
    assert not validating.gate.labelled_share.any()


def test_steps_that_kept_nothing_are_counted(make_trainer):
    trainer, loader = ready(make_trainer(PLAIN))
    assert trainer.train_step(next(loader))["nothing_kept"] == 0
    one = {"loss": 1.0, "unlabeled_loss": 1.0, "kept_counts": np.ones(3), "labelled_counts": np.ones(3)}
    one["counts"] = np.ones((3, 3))
    trainer.on_train_epoch_end([one | {"nothing_kept": n} for n in (1, 0, 1)])
    assert "steps in which no pseudo-label counted: 2" in Path(trainer.log_file).read_text()
    assert trainer.monitor.epoch([one], 0.5, False)["nothing_kept"] == 0
    assert np.isnan(trainer.monitor.epoch([one], 0.0, False)["nothing_kept"])


@pytest.mark.parametrize("kind", ["regions", "labels"])
def test_kept_background_is_something(make_trainer, kind):
    """A teacher that sees no foreground still teaches where none is."""
    trainer, loader = ready(make_trainer(PLAIN, kind=kind))
    background = torch.full((1, trainer.label_manager.num_segmentation_heads, 1, 1, 1), -9.0)
    if kind == "labels":
        background[:, 0] = 9.0
    trainer.teaching_step.teacher = lambda images: background.expand(len(images), -1, *images.shape[2:])
    report = trainer.train_step(next(loader))
    assert report["counts"][0][trainer.monitor.first_class :].sum() == 0
    assert report["nothing_kept"] == 0


@pytest.mark.parametrize("kind", ["labels", "regions"])
@pytest.mark.parametrize("method", ["Semi", "MeanTeacher_BCP_Confidence"])
def test_pseudo_labels_do_not_deny_what_the_teacher_cannot_see(make_trainer, method, kind):
    """A teacher that says background everywhere teaches that there is no class 2, unless it is silent about it."""
    denied = {}
    for silence in (True, False):
        trainer = make_trainer(f"nnUNetTrainer{method}_4epochs_2iterations", kind=kind)
        trainer.confidence_silence = silence
        trainer, loader = ready(trainer)
        step, batch = trainer.teaching_step, next(loader)
        logits = torch.full((1, step.number_of_outputs, 1, 1, 1), -9.0)
        if kind == "labels":
            logits[:, 0] = 9.0
        step.teacher = lambda images, logits=logits: logits.expand(len(images), -1, *images.shape[2:])
        learned = step.pseudo_labelled(batch)
        outputs = [torch.zeros_like(scale).requires_grad_() for scale in trainer.network(learned.images)]
        learned.loss(step.unlabelled, outputs, None).backward()
        there = learned.of_pseudo_labels(learned.valid) > 0
        denied[silence] = bool((outputs[0].grad[:, -1:] > 1e-12)[there].any())
    assert denied == {True: False, False: True}


def test_the_short_name_has_silence_and_its_parts_have_not(make_trainer):
    assert make_trainer("nnUNetTrainerSemi").confidence_silence
    assert not make_trainer("nnUNetTrainerMeanTeacher_CutMix_Confidence").confidence_silence

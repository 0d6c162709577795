"""Augmentation of data of the reference module: the position stays, and CT gets what makes sense in HU."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from data.two_streams import Make
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunet_ext.data.loaders import naming_damaged_cases, two_stream_loader, validation_loader
from nnunet_ext.data.reference_transforms import (
    LessNoise,
    OnOtherChannels,
    for_data_of,
    say_what_is_left_out,
    with_hounsfield,
    with_position_apart,
)
from nnunet_ext.data.training_cases import unlabeled_dataset
from nnunet_ext.data.transforms import with_validity
from nnunet_ext.data.views import StrongTable, strong_intensities, with_strong_views

SIZE = (32, 48)
ALWAYS = StrongTable(noise=1, blur=1, brightness=1, contrast=1, low_resolution=1, inverted_gamma=1, gamma=1)
REFERENCE = {"preprocessor_name": "ReferencePreprocessor", "normalization_schemes": ["HounsfieldNormalization"]}


def stock_transforms(channels=2) -> ComposeTransforms:
    """nnU-Net's own training transforms in 2D, each of which is always done."""
    made = nnUNetTrainer.get_training_transforms(
        SIZE, (-3.1, 3.1), None, (0, 1), False, use_mask_for_norm=[False] * channels, foreground_labels=[1]
    )
    for step in made.transforms:
        if hasattr(step, "apply_probability"):
            step.apply_probability = 1
        for name in ("p_rotation", "p_scaling"):
            if hasattr(step, name):
                setattr(step, name, 1)
    return made


def sample(channels=2, position=None, seed=0):
    """A patch larger than it will be, as the loader cuts it, with padding of zeros at one side."""
    size = (40, 56)
    image = torch.randn((channels, *size), generator=torch.Generator().manual_seed(seed))
    if position is not None:
        image = torch.cat([image, torch.full((1, *size), position)])
    image[:, :, :5] = 0
    return {"image": image, "segmentation": torch.ones((1, *size), dtype=torch.int16)}


def drawn(transforms, data, seed=3):
    torch.manual_seed(seed)
    np.random.seed(seed)
    return transforms(**{key: value.clone() for key, value in data.items()})


@pytest.mark.parametrize("seed", range(3))
def test_no_step_of_nnunets_changes_the_position_nor_does_the_position_change_a_step(seed):
    position = 0.3
    alone = drawn(stock_transforms(), sample(), seed)
    made = drawn(with_position_apart(stock_transforms()), sample(position=position), seed)
    assert made["image"].shape == (3, *SIZE)
    assert (made["image"][-1] == torch.tensor(position)).all()
    assert torch.equal(made["image"][:-1], alone["image"])
    assert torch.equal(made["segmentation"], alone["segmentation"])
    assert "position" not in made


def test_strong_views_have_the_position_of_their_patch():
    transforms = with_strong_views(stock_transforms(), 2, ALWAYS)
    made = drawn(with_validity(with_position_apart(transforms), True), sample(position=0.7))
    *_, first, second, valid = made["segmentation"]
    assert valid.shape == (1, *SIZE)
    for view in (made["image"], first, second):
        assert view.shape == (3, *SIZE)
        assert (view[-1] == torch.tensor(0.7)).all()
    assert not torch.equal(first[:2], second[:2])


def test_ct_gets_no_gamma_brightness_or_contrast_and_other_channels_keep_theirs():
    """With blur, low resolution and noise off nothing is left of the strong intensities for CT."""
    table = StrongTable(noise=0, blur=0, brightness=1, contrast=1, low_resolution=0, inverted_gamma=1, gamma=1)
    data = sample(3)
    made = drawn(with_hounsfield(ComposeTransforms(strong_intensities(table)), [1]), data)
    others = drawn(ComposeTransforms(strong_intensities(table)), {"image": data["image"][[0, 2]]})
    assert torch.equal(made["image"][1], data["image"][1])
    assert torch.equal(made["image"][[0, 2]], others["image"])
    alone = drawn(with_hounsfield(ComposeTransforms(strong_intensities(table)), [0]), sample(1))
    assert torch.equal(alone["image"], sample(1)["image"])


def test_noise_of_ct_is_a_tenth_and_that_of_other_channels_as_it_was():
    table = StrongTable(noise=1, blur=0, brightness=0, contrast=0, low_resolution=0, inverted_gamma=0, gamma=0)
    data = sample(2)
    whole = drawn(ComposeTransforms(strong_intensities(table)), data)["image"] - data["image"]
    made = drawn(with_hounsfield(ComposeTransforms(strong_intensities(table)), [1]), data)["image"] - data["image"]
    torch.testing.assert_close(made[1], 0.1 * whole[1], atol=1e-6, rtol=1e-4)
    assert torch.equal(made[0], whole[0])
    assert whole.abs().max() > 0.1


def test_strong_views_of_ct_are_made_of_the_same_steps():
    found = with_hounsfield(with_strong_views(stock_transforms(), 1), [0]).transforms
    inside = next(step for step in found if hasattr(step, "intensities")).intensities.transforms
    kinds = [type(step).__name__ for step in inside]
    assert kinds.count("OnOtherChannels") == 4
    assert kinds.count("LessNoise") == 1
    assert kinds[1] == "GaussianBlurTransform"


def test_plans_of_others_are_augmented_as_before():
    configuration = SimpleNamespace(normalization_schemes=["CTNormalization"], configuration={})
    transforms, said = stock_transforms(), []
    trainer = SimpleNamespace(configuration_manager=configuration, print_to_log_file=said.append)
    assert for_data_of(trainer, transforms) is transforms
    say_what_is_left_out(trainer)
    assert said == []
    configuration.normalization_schemes = ["HounsfieldNormalization"]
    steps = for_data_of(trainer, transforms).transforms
    assert [type(step) for step in steps if isinstance(step, (OnOtherChannels, LessNoise))] == [
        LessNoise,
        *[OnOtherChannels] * 4,
    ]
    assert not any(isinstance(step, GammaTransform) for step in steps)
    say_what_is_left_out(trainer)
    assert "channel 0" in said[0]
    assert "gamma and inverted gamma are left out" in said[0]
    assert "scaled by 100 HU" in said[0]


def positions_of(data, shape):
    """Positions of the patches of a batch, once they are found to be the same in all of a patch."""
    assert data.shape[1:] == shape
    flat = data[:, -1].flatten(1)
    assert (flat == flat[:, :1]).all()
    return set(flat[:, 0].tolist())


def test_loaders_carry_the_position(make: Make):
    trainer, _ = make(configuration="2d", two_d_changes=REFERENCE)
    allowed = set(np.float32(np.arange(12) / 11).tolist())
    loader, found = two_stream_loader(trainer, unlabeled_dataset(trainer), 2), set()
    for _ in range(4):
        batch = next(loader)
        for key in ("data", "unlabeled", "unlabeled_strong", "unlabeled_strong_2"):
            found |= positions_of(batch[key], (2, 16, 16))
        assert torch.equal(batch["unlabeled"][:, -1], batch["unlabeled_strong"][:, -1])
        assert torch.equal(batch["unlabeled"][:, -1], batch["unlabeled_strong_2"][:, -1])
    assert len(found) > 3
    assert found <= allowed
    assert positions_of(next(validation_loader(trainer))["data"], (2, 16, 16)) <= allowed


def test_nnunets_own_loaders_carry_it_for_trainers_of_ours(make: Make, monkeypatch):
    trainer, _ = make(configuration="2d", two_d_changes=REFERENCE)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    with naming_damaged_cases(trainer):
        train, val = trainer.get_dataloaders()
    allowed = set(np.float32(np.arange(12) / 11).tolist())
    for loader in (train, val):
        assert isinstance(loader, SingleThreadedAugmenter)
        assert positions_of(next(loader)["data"], (2, 16, 16)) <= allowed


def test_labelled_cases_from_before_the_position_was_switched(make: Make):
    """Else the last channel of the image would be taken for the position, or the position for one of the image."""
    trainer, _ = make(configuration="2d")
    configuration = trainer.configuration_manager.configuration
    changed = configuration | REFERENCE
    trainer.configuration_manager = ConfigurationManager(changed)
    message = (
        r"l\.b2nd has 1 channel\(s\), but image and position of slices have 2 by the plans nnUNetPlans: it was "
        "preprocessed with other plans. Run: nnUNetv2_preprocess -d 777 -plans_name nnUNetPlans -c 2d"
    )
    with pytest.raises(RuntimeError, match=message):
        two_stream_loader(trainer, None)
    with pytest.raises(RuntimeError, match=message), naming_damaged_cases(trainer):
        pytest.fail("loaders were made")
    trainer.configuration_manager = ConfigurationManager(configuration)
    trainer.dataset_json = trainer.dataset_json | {"channel_names": {}}  # plans of others are not looked at
    two_stream_loader(trainer, None)


def test_labelled_cases_with_a_position_that_was_switched_off(make: Make):
    trainer, _ = make(configuration="2d", two_d_changes=REFERENCE)
    configuration = trainer.configuration_manager.configuration
    configuration["architecture"]["arch_kwargs"]["position"] = False
    changed = configuration | {"preprocessor_name": "SemiSupervisedPreprocessor"}
    trainer.configuration_manager = ConfigurationManager(changed)
    with pytest.raises(RuntimeError, match=r"has 2 channel\(s\), but the image has 1 by the plans"):
        two_stream_loader(trainer, None)

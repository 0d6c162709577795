from dataclasses import replace
from itertools import pairwise
from math import prod
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform, SegOnlyTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.intensity.inversion import InvertImageTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.random import OneOfTransform, RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTransform
from data.two_streams import Make, MirrorsOnly
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import nnUNetTrainerDA5
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA

from nnunet_ext.data.loaders import in_background, two_stream_loader
from nnunet_ext.data.training_cases import unlabeled_dataset
from nnunet_ext.data.transforms import AppendValidity, MaskToSegmentation, NoteValidity, with_validity
from nnunet_ext.data.views import (
    STRONG,
    MakeStrongViews,
    StrongTable,
    Turn,
    apply_turn,
    apply_turns,
    draw_turn,
    foreign_steps,
    is_intensity,
    strong_intensities,
    strong_key,
    strong_training_transforms,
    turnable_planes,
    undo_turn,
    with_strong_views,
)

OFF = StrongTable(noise=0, blur=0, brightness=0, contrast=0, low_resolution=0, inverted_gamma=0, gamma=0)
ANGLES = (-np.pi, np.pi)


def seed(number):
    np.random.seed(number)
    torch.manual_seed(number)


def stock(patch, mirror_axes=None, dummy_2d=False, masks=None, trainer=nnUNetTrainer):
    axes = tuple(range(len(patch))) if mirror_axes is None else mirror_axes
    return trainer.get_training_transforms(patch, ANGLES, None, axes, dummy_2d, use_mask_for_norm=masks)


def ramps(channels, shape):
    """Return an image of which every channel rises along all axes, and a mask that is 0 in two slabs, -1 in a third."""
    places = torch.meshgrid(*[torch.arange(size, dtype=torch.float32) for size in shape], indexing="ij")
    ramp = sum(place * 10**axis for axis, place in enumerate(places))
    image = torch.stack([ramp * (channel + 1) + 1 for channel in range(channels)])
    mask = torch.ones(1, *shape, dtype=torch.int16)
    mask[..., :3] = 0
    mask[..., -2:] = -1
    return image, mask


def make_views(transforms, image, mask, number=1, table=STRONG):
    """Return the weak view, the strong ones, and the mask, as the loader gets them."""
    steps = with_validity(with_strong_views(transforms, number, table), True)
    made = steps(image=image.clone(), segmentation=mask.clone())
    _, *strong, valid = made["segmentation"]
    return made["image"], strong, valid


# Patch, size that is drawn, channels, options of nnU-Net's transforms.
KINDS = {
    "2d": ((12, 12), (17, 17), 1, {}),
    "3d": ((12, 12, 12), (17, 17, 17), 1, {}),
    "dummy 2d": ((5, 16, 16), (5, 20, 20), 1, {"dummy_2d": True}),
    "dummy 2d, channels": ((5, 16, 16), (5, 20, 20), 3, {"dummy_2d": True}),
    "channels": ((12, 12, 12), (17, 17, 17), 2, {}),
    "mask norm": ((12, 12, 12), (17, 17, 17), 2, {"masks": [True, False]}),
    "no mirroring": ((12, 12), (17, 17), 1, {"mirror_axes": ()}),
}
kinds = pytest.mark.parametrize(("patch", "drawn", "channels", "options"), KINDS.values(), ids=KINDS)


def untouched(steps):
    """Share of one-channel patches that the intensity steps leave alone, from their own probabilities."""

    def touched(step):
        if isinstance(step, RandomTransform):
            return step.apply_probability * touched(step.transform)
        return step.p_per_channel

    return prod(1 - touched(step) for step in steps if is_intensity(step))


def test_share_of_patches_that_stay_untouched():
    # nnU-Net's: 0.9 (1 - 0.2 x 0.5) 0.85 0.85 (1 - 0.25 x 0.5) 0.9 0.7; the table's: 0.5^5 0.75 0.9
    assert untouched(stock((8, 8)).transforms) == pytest.approx(0.322605, abs=5e-7)
    assert untouched(strong_intensities()) == pytest.approx(0.021094, abs=5e-7)


# Low resolution changes nothing by one scale in 24, 23.5/24 to 1: 0.75 becomes 0.760417, nnU-Net's 0.875 0.880208.
@pytest.mark.parametrize(
    ("steps", "expected"),
    [(strong_intensities(), 0.021387), ([s for s in stock((8, 8)).transforms if is_intensity(s)], 0.324525)],
    ids=["table", "nnU-Net"],
)
def test_share_of_patches_that_stay_untouched_is_what_is_drawn(steps, expected):
    image, number = torch.rand(1, 24, 24, generator=torch.Generator().manual_seed(0)), 2000
    seed(0)
    views = MakeStrongViews(steps, number)(image=image)["strong"]
    share = sum(torch.equal(view, image) for view in views) / number
    assert share == pytest.approx(expected, abs=3 * (expected * (1 - expected) / number) ** 0.5)


def test_ranges_of_the_table():
    table = {type(getattr(step, "transform", step)).__name__: step for step in strong_intensities()}
    stocks = {type(step.transform).__name__: step.transform for step in stock((8, 8)).transforms if is_intensity(step)}
    assert list(table) == list(stocks)
    changed = {"apply_probability", "p_per_channel", "multiplier_range", "contrast_range", "gamma", "p_invert_image"}
    for name, step in table.items():
        ours, theirs = (vars(one) for one in (getattr(step, "transform", step), stocks[name]))
        for key in theirs.keys() - changed - {"benchmark", "benchmark_use_fft"}:
            assert ours[key] == theirs[key], (name, key)
    assert table["MultiplicativeBrightnessTransform"].transform.multiplier_range.contrast_range == (0.5, 1.5)
    assert table["ContrastTransform"].transform.contrast_range.contrast_range == (0.5, 1.5)
    gammas = [step.transform for step in strong_intensities() if "GammaTransform" in repr(step)]
    assert [gamma.p_invert_image for gamma in gammas] == [1, 0]
    assert [gamma.gamma.contrast_range for gamma in gammas] == [(0.7, 1.5)] * 2


@kinds
def test_views_of_one_patch_differ_in_nothing_but_intensities(patch, drawn, channels, options):
    image, mask = ramps(channels, drawn)
    transforms = stock(patch, **options)
    cropped = moved = 0
    for number in range(12):
        seed(number)
        weak, strong, valid = make_views(transforms, image, mask, 2, OFF)
        assert tuple(weak.shape) == (channels, *patch)
        assert tuple(valid.shape) == (1, *patch)
        assert valid.dtype == torch.uint8
        for view in strong:
            assert torch.equal(view, weak)
        seed(number)
        again, strong, valid_again = make_views(transforms, image, mask)
        assert torch.equal(again, weak)  # the weak view is made before the strong ones, and not written into by them
        assert torch.equal(valid_again, valid)
        cropped += int((valid == 0).any())
        middle = tuple(slice((d - p) // 2, (d - p) // 2 + p) for d, p in zip(drawn, patch, strict=True))
        moved += not torch.equal(weak, image[(slice(None), *middle)])
    assert cropped
    assert moved


@kinds
def test_strong_views_lie_on_the_weak_one_voxel_by_voxel(patch, drawn, channels, options):
    image, mask = ramps(channels, drawn)
    table = replace(OFF, brightness=1)
    factors = []
    for number in range(6):
        seed(number)
        weak, strong, _ = make_views(stock(patch, **options), image, mask, 2, table)
        for view in strong:
            factor = view.flatten(1).sum(1) / weak.flatten(1).sum(1)
            torch.testing.assert_close(view, weak * factor.view(-1, *[1] * len(patch)))
            factors += factor.tolist()
    assert all(0.5 <= factor <= 1.5 for factor in factors)
    assert len({round(factor, 6) for factor in factors}) == len(factors)  # of each view and each channel


def test_mirroring_comes_before_the_intensities_and_is_the_only_mirroring():
    transforms = with_strong_views(stock((8, 8), masks=[True]), 1)
    names = [type(step).__name__ for step in transforms.transforms]
    assert names == [
        "SpatialTransform",
        "MirrorTransform",
        "MakeStrongViews",
        "MaskImageTransform",
        "MaskStrongViews",
        "RemoveLabelTransform",
        "AppendStrongViews",
    ]
    assert tuple(transforms.transforms[1].allowed_axes) == (0, 1)
    assert "MirrorTransform" not in [
        type(step).__name__ for step in with_strong_views(stock((8, 8), mirror_axes=()), 1).transforms
    ]


def test_mask_normalisation_follows_the_strong_intensities():
    image, mask = ramps(2, (17, 17, 17))
    transforms = stock((12, 12, 12), masks=[True, False])
    noise = replace(OFF, noise=1, noise_variance=(0.1, 0.1))
    outside = 0
    for number in range(4):
        seed(number)
        weak, (strong,), valid = make_views(transforms, image, mask, 1, noise)
        where = valid[0] == 0
        assert bool((weak[0][where] == 0).all())
        assert bool((strong[0][where] == 0).all())
        assert int((strong[1] != weak[1]).sum()) > 0.9 * strong[1].numel()
        outside += int(where.sum())
    assert outside > 100


def test_low_resolution_spares_the_first_axis_where_slices_are_augmented_in_2d():
    image, _ = ramps(1, (6, 8, 8))
    for in_slices in (False, True):
        seed(0)
        steps = strong_intensities(replace(OFF, low_resolution=1, scale=(0.5, 0.5)), in_slices)
        coarse = MakeStrongViews(steps, 1)(image=image)["strong"][0]
        assert torch.equal(coarse[:, :, 4, 4].diff(), image[:, :, 4, 4].diff()) == in_slices
    for dummy_2d in (False, True):
        made = with_strong_views(stock((6, 8, 8), dummy_2d=dummy_2d), 1)
        (views,) = [step for step in made.transforms if isinstance(step, MakeStrongViews)]
        (low,) = [step for step in views.intensities.transforms if "SimulateLow" in repr(step)]
        assert low.ignore_axes == ((0,) if dummy_2d else None)


class OwnImage(ImageOnlyTransform):
    def get_parameters(self, **data_dict):
        return {"value": float(torch.rand(1))}

    def _apply_to_image(self, img, value):
        return img + value


class OwnNoise(GaussianNoiseTransform):
    pass


class OwnLabels(SegOnlyTransform):
    def _apply_to_segmentation(self, segmentation, **params):
        return segmentation


def with_step(step, place):
    steps = list(stock((8, 8)).transforms)
    steps.insert(place, step)
    return ComposeTransforms(steps)


@pytest.mark.parametrize("place", [0, 3, 100], ids=["first", "among the intensities", "last"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_transform_that_is_not_nnunets_is_kept_and_shared(place, wrapped):
    image, mask = ramps(1, (11, 11))
    own = RandomTransform(OwnImage(), 1) if wrapped else OwnImage()
    transforms = with_step(own, place)
    assert foreign_steps(transforms) == ["OwnImage"]
    seed(1)
    weak, (strong,), _ = make_views(transforms, image, mask, 1, OFF)
    assert torch.equal(weak, strong)
    steps = with_strong_views(transforms, 1).transforms
    assert steps.index(own) < [isinstance(step, MakeStrongViews) for step in steps].index(True)


def test_own_intensities_of_nnunets_kind_are_replaced_and_steps_of_labels_stay():
    noise, labels = RandomTransform(OwnNoise(), 0.3), OwnLabels()
    assert noise not in with_strong_views(with_step(noise, 2), 1).transforms
    assert foreign_steps(with_step(noise, 2)) == foreign_steps(with_step(labels, 2)) == []
    steps = with_strong_views(with_step(labels, 100), 1).transforms
    assert steps[-2] is labels
    either = OneOfTransform([InvertImageTransform(1, 1, 1), OwnImage()])
    assert either in with_strong_views(with_step(either, 2), 1).transforms
    assert foreign_steps(with_step(either, 2)) == ["InvertImageTransform", "OwnImage"]


@pytest.mark.parametrize("trainer", [nnUNetTrainer, nnUNetTrainerDA5, nnUNetTrainerNoDA])
def test_nothing_of_nnunets_own_trainers_is_unknown(trainer):
    if trainer is nnUNetTrainerNoDA:
        transforms = trainer.get_training_transforms((8, 8, 8), ANGLES, None, None, False)
    else:
        transforms = stock((8, 8, 8), masks=[True], trainer=trainer)
    assert foreign_steps(transforms) == []
    image, mask = ramps(1, (8, 8, 8))
    seed(0)
    weak, (strong,), valid = make_views(transforms, image, mask, 1, OFF)
    assert torch.equal(weak, strong)
    assert int(valid.sum())


def test_given_transforms_are_not_changed_and_need_the_step_that_removes_the_padding():
    given = stock((8, 8))
    before = list(given.transforms)
    with_strong_views(given, 1)
    assert given.transforms == before
    with pytest.raises(RuntimeError, match=r"has no RemoveLabelTransform\(-1, \.\.\.\)"):
        with_strong_views(ComposeTransforms([MirrorTransform((0,))]), 1)


def test_labelled_patches_get_the_same_table():
    given = stock((8, 8, 8), masks=[True])
    made = strong_training_transforms(
        nnUNetTrainer, (8, 8, 8), ANGLES, [[1, 1, 1], [0.5, 0.5, 0.5]], (0, 1, 2), False, use_mask_for_norm=[True]
    )
    names = [type(step).__name__ for step in made.transforms]
    strong = [type(step).__name__ for step in strong_intensities()]
    rest = ["MirrorTransform", "MaskImageTransform", "RemoveLabelTransform", "DownsampleSegForDSTransform"]
    assert names == ["SpatialTransform", *strong, *rest]
    assert untouched(made.transforms) == pytest.approx(0.021094, abs=5e-7)
    image, label = ramps(1, (11, 11, 11))
    trainer = SimpleNamespace(get_training_transforms=lambda: given)
    seed(3)
    image_off = strong_training_transforms(trainer, table=OFF)(image=image.clone(), segmentation=label)["image"]
    assert tuple(image_off.shape) == (1, 8, 8, 8)
    assert set(image_off.unique().tolist()) <= {0.0, *image.unique().tolist()}  # neither turned nor scaled by this seed


def test_without_intensities_the_table_comes_before_masks_and_labels():
    steps = [MaskImageTransform([0]), RemoveLabelTransform(-1, 0)]
    trainer = SimpleNamespace(get_training_transforms=lambda: ComposeTransforms([MirrorTransform((0,)), *steps]))
    made = strong_training_transforms(trainer).transforms
    assert isinstance(made[0], MirrorTransform)
    assert [is_intensity(step) for step in made[1:-2]] == [True] * 7
    assert made[-2:] == steps


def loader_of(trainer, *arguments, **options):
    loader = two_stream_loader(trainer, unlabeled_dataset(trainer), *arguments, **options)
    seed(5)
    return loader


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (2, 1, 16, 16, 16)),
        ({"configuration": "2d"}, (2, 1, 16, 16)),
        ({"patch_size": [4, 16, 16]}, (2, 1, 4, 16, 16)),
        ({"deep_supervision": True}, (2, 1, 16, 16, 16)),
        ({"use_mask_for_norm": [True]}, (2, 1, 16, 16, 16)),
    ],
    ids=["3d", "2d", "dummy 2d", "deep supervision", "mask norm"],
)
@pytest.mark.parametrize("number", [1, 2])
def test_a_batch_has_the_views_under_names_of_their_own(make: Make, options, shape, number):
    trainer, _ = make(**options)
    loader = loader_of(trainer, number)
    keys = ["unlabeled", "unlabeled_strong", "unlabeled_strong_2"][: number + 1]
    for _ in range(3):
        batch = next(loader)
        assert set(batch) == {"data", "target", "keys", "valid", *keys}
        for key in keys:
            assert tuple(batch[key].shape) == shape
            assert batch[key].dtype == torch.float32
            assert batch[key].is_contiguous()
        assert tuple(batch["valid"].shape) == (4, 1, *shape[2:])
        views = [batch[key] for key in keys]
        assert len({view.data_ptr() for view in views}) == len(views)
        assert not any(torch.equal(a, b) for a, b in pairwise(views))
        if "use_mask_for_norm" in options:
            assert all(bool((view[batch["valid"][2:] == 0] == 0).all()) for view in views)


def test_the_loader_keeps_padding_and_places(make: Make):
    trainer, _ = make()
    loader = loader_of(trainer, 2, table=OFF)
    padding = 0
    for _ in range(4):
        batch = next(loader)
        valid = batch["valid"][2:]
        assert torch.equal(batch["unlabeled"], batch["unlabeled_strong"])
        assert torch.equal(batch["unlabeled"], batch["unlabeled_strong_2"])
        padding += int((valid == 0).sum())
    assert padding > 100


def test_several_channels_through_the_loader(make: Make, monkeypatch):
    trainer, _ = make()
    loader = loader_of(trainer, 1, table=replace(OFF, brightness=1))
    for half in (loader.labelled, loader.unlabelled):
        load = half._data.load_case

        def load_two(name, load=load):
            image, *rest = load(name)
            return np.concatenate([image[...], 3 * image[...]]), *rest

        monkeypatch.setattr(half._data, "load_case", load_two)
    batch = next(loader)
    weak, strong = batch["unlabeled"], batch["unlabeled_strong"]
    assert tuple(weak.shape) == tuple(strong.shape) == (2, 2, 16, 16, 16)
    torch.testing.assert_close(weak[:, 1], 3 * weak[:, 0])
    assert not torch.allclose(strong[:, 1], 3 * strong[:, 0])  # a factor for each channel


def test_without_strong_views_nothing_has_changed(make: Make):
    trainer, today = make()
    loader = loader_of(trainer, 0)
    ours = next(loader)
    rotation, dummy, _, mirror = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    given = trainer.get_training_transforms(
        trainer.configuration_manager.patch_size, rotation, None, mirror, dummy, use_mask_for_norm=[False]
    )
    kinds_given = [type(step) for step in given.transforms]
    kinds_made = [type(step) for step in loader.unlabelled.transforms.transforms]
    assert kinds_made == [MaskToSegmentation, *kinds_given[:-1], NoteValidity, kinds_given[-1], AppendValidity]
    today.unlabelled.transforms = with_validity(given, True)
    seed(5)
    theirs = next(today)
    assert set(ours) == set(theirs) == {"data", "target", "keys", "unlabeled", "valid"}
    for key in ("data", "target", "unlabeled", "valid"):
        assert torch.equal(ours[key], theirs[key])


def test_the_weak_view_is_todays_patch_where_the_trainer_has_no_intensities(make: Make):
    trainer, _ = make(MirrorsOnly)
    batches = [next(loader_of(trainer, number)) for number in (0, 2)]
    # Of the first patch of a batch: later ones are drawn after strong views.
    assert torch.equal(batches[0]["unlabeled"][0], batches[1]["unlabeled"][0])
    assert torch.equal(batches[0]["valid"][2], batches[1]["valid"][2])
    assert torch.equal(batches[0]["data"], batches[1]["data"])


def test_two_loadings_of_one_seed_are_the_same(make: Make, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    trainer, _ = make()
    runs = []
    for _ in range(2):
        loader = in_background(loader_of(trainer, 2), pin_memory=False, train=True, seed=1)
        runs.append([next(loader) for _ in range(3)])
    for one, other in zip(*runs, strict=True):
        assert list(one["keys"]) == list(other["keys"])
        for key in ("data", "unlabeled", "unlabeled_strong", "unlabeled_strong_2", "valid"):
            assert torch.equal(one[key], other[key])


class WithOwnStep(nnUNetTrainer):
    @staticmethod
    def get_training_transforms(*arguments, **options):
        given = nnUNetTrainer.get_training_transforms(*arguments, **options)
        return ComposeTransforms([OwnImage(), *given.transforms])


def test_an_unknown_step_is_said_once_in_the_log_and_an_override_is_respected(make: Make, monkeypatch):
    trainer, _ = make(WithOwnStep)
    said = []
    monkeypatch.setattr(trainer, "print_to_log_file", lambda *words: said.append(" ".join(map(str, words))))
    loader = loader_of(trainer, 1)
    (line,) = [text for text in said if "OwnImage" in text]
    assert line.startswith("get_training_transforms of this trainer has steps that are not nnU-Net's (OwnImage): they")
    assert isinstance(loader.unlabelled.transforms.transforms[1], OwnImage)
    said.clear()
    loader_of(trainer, 0)
    assert not [text for text in said if "OwnImage" in text]


def test_without_unlabelled_cases_there_are_no_views(make: Make):
    trainer, _ = make()
    assert set(next(two_stream_loader(trainer, None, 2))) == {"data", "target", "keys", "valid"}


@pytest.mark.parametrize("number", [-1, 1.5, "1"])
def test_a_number_of_views_that_is_none_is_refused(number):
    with pytest.raises(ValueError, match=r"strong views .* must be a whole number from 0, got .*; 0 makes none"):
        two_stream_loader(SimpleNamespace(), None, number)


def test_names_of_the_views():
    assert [strong_key(number) for number in (1, 2, 3)] == [
        "unlabeled_strong",
        "unlabeled_strong_2",
        "unlabeled_strong_3",
    ]


def test_mirroring_by_hand():
    image = torch.tensor([[0, 1, 2], [3, 4, 5]])
    turned, labels, nothing = apply_turn(Turn(mirrored=(1,), dimensions=2), image, image > 3, None)
    assert turned.tolist() == [[2, 1, 0], [5, 4, 3]]
    assert torch.equal(labels, turned > 3)
    assert nothing is None
    mirror = MirrorTransform((1,)).apply({"image": image[None], "segmentation": image[None] > 3}, axes=[1])
    assert torch.equal(mirror["image"][0], turned)
    assert torch.equal(mirror["segmentation"][0], labels)


def test_a_quarter_by_hand():
    image = torch.tensor([[0, 1], [2, 3]])
    (turned,) = apply_turn(Turn(quarters=(((0, 1), 1),), dimensions=2), image)
    assert turned.tolist() == [[1, 3], [0, 2]]


@pytest.mark.parametrize(
    ("size", "spacing", "planes"),
    [
        ((40, 56, 40), (1, 1, 1), ((0, 2),)),
        ((16, 64, 64), (3, 1, 1), ((1, 2),)),
        ((64, 64, 64), (3, 1, 1), ((1, 2),)),
        ((64, 64, 64), (1, 1, 1.0001), ((0, 1), (0, 2), (1, 2))),
        ((64, 48), (1, 1), ()),
    ],
)
def test_planes_of_equal_size_and_spacing(size, spacing, planes):
    assert turnable_planes(size, spacing) == planes


@pytest.mark.parametrize("shape", [(4, 4), (3, 4, 4), (4, 4, 4)])
def test_turns_are_permutations_alike_in_all_tensors_and_round_trips(shape):
    dimensions = len(shape)
    image = torch.arange(2 * 3 * np.prod(shape), dtype=torch.float32).view(2, 3, *shape)
    labels, mask = image[:, :1].long() % 5, image[:, :1] % 2 == 0
    planes = turnable_planes(shape, [1] * dimensions)
    seen = set()
    for number in range(40):
        generator = torch.Generator().manual_seed(number)
        turn = draw_turn(dimensions, tuple(range(dimensions)), planes, generator)
        assert turn == draw_turn(dimensions, tuple(range(dimensions)), planes, torch.Generator().manual_seed(number))
        turned = apply_turn(turn, image, labels, mask)
        assert torch.equal(turned[1], turned[0][:, :1].long() % 5)
        assert torch.equal(turned[2], turned[0][:, :1] % 2 == 0)
        assert turned[0].shape == image.shape
        assert torch.equal(turned[0].flatten(2).sort(-1).values, image.flatten(2))
        for back, before in zip(undo_turn(turn, *turned), (image, labels, mask), strict=True):
            assert torch.equal(back, before)
            assert back.dtype == before.dtype
        seen.add(turn)
    assert len(seen) > 3
    seed(1)
    one = draw_turn(dimensions, (0,), planes)
    seed(1)
    assert draw_turn(dimensions, (0,), planes) == one


def test_each_patch_of_a_batch_has_its_own_turn():
    image = torch.arange(2 * 16, dtype=torch.float32).view(2, 1, 4, 4)
    turns = [Turn((0,), dimensions=2), Turn((), (((0, 1), 1),), 2)]
    turned, labels, nothing = apply_turns(turns, image, image > 9, None)
    assert turned[0].tolist() == image[0].flip(1).tolist()
    assert turned[1].tolist() == image[1].rot90(1, (1, 2)).tolist()
    assert torch.equal(labels, turned > 9)
    assert nothing is None
    with pytest.raises(ValueError, match=r"shorter|longer"):
        apply_turns(turns[:1], image)


def test_only_allowed_axes_are_mirrored():
    turns = [draw_turn(3, (1,), (), torch.Generator().manual_seed(number)) for number in range(20)]
    assert {turn.mirrored for turn in turns} == {(), (1,)}
    assert draw_turn(3, None, ()) == Turn()

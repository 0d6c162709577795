"""Triples of slices with growing gaps."""

import os
from collections import Counter

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from reference import tiny

from nnunet_ext.data import slice_triples
from nnunet_ext.data.loaders import in_background
from nnunet_ext.data.slice_triples import (
    GapSchedule,
    as_objects,
    draw_objects,
    draw_slices,
    rounded_up,
    slice_triple_loader,
    within_slices,
)
from nnunet_ext.trainers.names import find_trainer

NAME = "nnUNetTrainerPropagation_1epochs_1iterations"


def test_slices_rise_or_fall_and_lie_in_the_volume():
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(3000):
        number, most = int(rng.integers(3, 12)), int(rng.integers(0, 30))
        first = int(rng.integers(0, number))
        found = draw_slices(number, first, most, rng)
        if found is None:
            assert max(first, number - 1 - first) < 2
            continue
        gaps = np.diff(found)
        assert found[0] == first
        assert set(np.sign(gaps)) in ({1}, {-1})
        assert 1 <= np.abs(gaps).min() <= np.abs(gaps).max() <= most + 1
        assert 0 <= min(found) < max(found) < number
        seen |= {(number, index) for index in found}
    assert {(number, number - 1) for number in range(3, 12)} < seen  # the last slice, too


def test_where_there_is_room_gaps_are_uniform_and_directions_even():
    rng = np.random.default_rng(1)
    draws = np.array([draw_slices(101, 50, 3, rng) for _ in range(4000)])
    gaps = np.abs(np.diff(draws))
    for column in gaps.T:
        assert np.bincount(column, minlength=5)[1:] / len(draws) == pytest.approx(np.full(4, 0.25), abs=0.03)
    assert (draws[:, 1] > 50).mean() == pytest.approx(0.5, abs=0.03)
    assert abs(np.corrcoef(gaps.T)[0, 1]) < 0.05


@pytest.mark.parametrize(("number", "first"), [(1, 0), (2, 0), (2, 1), (3, 1)])
def test_without_two_more_slices_there_is_no_triple(number, first):
    assert draw_slices(number, first, 25, np.random.default_rng(0)) is None


def test_gaps_follow_the_progress_of_a_training_of_any_length():
    steps = ((0, 25), (0.1, 3), (0.2, 4), (0.3, 5), (0.4, 7), (0.9, 3))
    for total in (10, 1000):
        schedule = GapSchedule(steps, total)
        assert [schedule.at(total * tenth // 10) for tenth in range(10)] == [25, 3, 4, 5, 7, 7, 7, 7, 7, 3]
    assert GapSchedule(steps, 1000).at(-1) == 25  # the batch that starts the loader
    assert GapSchedule(steps).at(0) == 3


def test_objects_are_drawn_from_the_classes_of_the_first_slice():
    labels = torch.tensor([[0, 1, 2], [3, 5, -1]])
    rng = np.random.default_rng(0)
    drawn = Counter(tuple(draw_objects(labels, (1, 2, 3, 4), rng)) for _ in range(600))
    assert set(drawn) == {(a, b) for a in (1, 2, 3) for b in (1, 2, 3) if a != b}
    assert min(drawn.values()) > 60
    assert draw_objects(labels, (4, 3), rng) == [3]
    assert draw_objects(labels, (4,), rng) == []


def test_what_the_network_is_given_and_is_to_find():
    labels = torch.tensor([[[2, 2, 1, 4]], [[2, 1, 0, 4]], [[1, 4, 3, 2]]])
    both = as_objects(labels, [2, 1], 4)
    assert both["masks"].tolist() == [[[1, 1, 0, 0]], [[0, 0, 1, 0]]]
    assert both["target"].tolist() == [[[1, 2, 0, -1]], [[2, -1, 0, 1]]]
    assert (both["present"].tolist(), both["classes"].tolist()) == ([True, True], [2, 1])
    one = as_objects(labels, [1], None)
    assert one["masks"].tolist() == [[[0, 0, 1, 0]], [[0, 0, 0, 0]]]
    assert one["target"].tolist() == [[[0, 1, 0, 0]], [[1, 0, 0, 0]]]
    assert (one["present"].tolist(), one["classes"].tolist()) == ([True, False], [1, 0])


def test_blur_stays_within_slices_and_is_the_same_in_all():
    blur = GaussianBlurTransform((1.0, 1.0), False, False, 1.0)
    steps = within_slices(ComposeTransforms([RandomTransform(blur, 1.0), blur]))
    image = torch.zeros((1, 3, 16, 16))
    image[:, 1, 8, 8] = 1
    blurred = steps(image=image.clone())["image"]
    assert 0 < blurred[0, 1, 8, 9] < blurred[0, 1, 8, 8] < 1
    assert blurred[0, [0, 2]].abs().sum() == 0
    alike = torch.rand((1, 1, 16, 16)).expand(1, 3, 16, 16)
    blurred = within_slices(ComposeTransforms([GaussianBlurTransform((0.5, 3.0), False, False, 1.0)]))(image=alike)
    assert torch.equal(blurred["image"][:, 0], blurred["image"][:, 2])


@pytest.fixture
def trainer_of(tmp_path, monkeypatch):
    """Make an initialised trainer on a tiny dataset, by kind of labels and changes of its configuration."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")

    def make(kind="labels", **changes):
        if not (tmp_path / "preprocessed").exists():
            tiny.make(tmp_path, kind, configurations=("2d",), unlabelled=0)
        plans = tiny.plans() | {"continue_training": False}
        plans["configurations"]["2d"] |= changes
        cls = type(NAME, (find_trainer(NAME),), tiny.NARROW["PropagationPart"])
        trainer = cls(plans, "2d", 0, tiny.dataset_json(kind), torch.device("cpu"))
        trainer.initialize()
        return trainer

    return make


def loader_of(trainer, train=True, first=0, seed=5):
    dataset = trainer.get_tr_and_val_datasets()[0 if train else 1]
    return slice_triple_loader(trainer, dataset, train, GapSchedule(((0, 2),)), seed, first)


def same(one, two):
    return all(torch.equal(one[key], two[key]) for key in one if key != "keys") and one["keys"] == two["keys"]


@pytest.mark.parametrize("kind", ["labels", "regions", "ignore", "regions_ignore"])
def test_batches(trainer_of, kind):
    trainer = trainer_of(kind, patch_size=[20, 14], batch_size=9)
    loader = loader_of(trainer)
    batch = [next(loader) for _ in range(6)][-1]
    assert rounded_up([20, 14]) == (32, 16)
    assert batch["data"].shape == (3, 3, 1, 32, 16)  # a third of the plans' batch
    assert batch["data"].dtype == torch.float32
    assert batch["masks"].shape == batch["target"].shape == (3, 2, 32, 16)
    assert batch["present"][:, 0].all()
    assert (batch["masks"].flatten(2).any(2) == batch["present"]).all()
    assert ((batch["classes"] > 0) == batch["present"]).all()
    assert set(batch["classes"].flatten().tolist()) <= {0, 1, 2}  # labels of regions, too
    assert set(batch["target"].flatten().tolist()) <= {-1, 0, 1, 2}
    assert batch["target"].max() == 1 or batch["present"][:, 1].any()


def test_ignored_pixels_are_marked(trainer_of):
    loader = loader_of(trainer_of("ignore"), train=False)
    targets = torch.cat([next(loader)["target"] for _ in range(8)])
    assert (targets == -1).any()


def test_a_batch_follows_from_seed_and_step_alone(trainer_of):
    trainer = trainer_of()
    whole = [next(loader) for loader in [loader_of(trainer)] for _ in range(4)]
    np.random.seed(1)
    torch.manual_seed(1)
    before = np.random.get_state()[1].copy(), torch.get_rng_state().clone()
    later = loader_of(trainer, first=2)
    assert all(same(next(later), expected) for expected in whole[2:])
    assert (np.random.get_state()[1] == before[0]).all()
    assert torch.equal(torch.get_rng_state(), before[1])
    shared = loader_of(trainer)
    shared.processes = 2
    shared.set_thread_id(1)
    assert all(same(next(shared), expected) for expected in whole[1::2])
    assert not same(next(loader_of(trainer, seed=6)), whole[0])
    assert not same(whole[0], whole[1])


def test_loader_processes_share_the_steps(trainer_of, monkeypatch):
    trainer = trainer_of()
    alone = [next(loader)["data"] for loader in [loader_of(trainer)] for _ in range(4)]
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    background = in_background(loader_of(trainer), False, True, 5)
    try:
        found = [next(background)["data"] for _ in range(2)]
    finally:
        background._finish()
    assert all(any(torch.equal(one, other) for other in alone) for one in found)
    assert not torch.equal(*found)


def test_slices_move_alike(trainer_of):
    """Labels are a bar through all slices: whatever is done in plane, it stays one."""
    trainer = trainer_of(patch_size=[32, 32], batch_size=12)
    loader = loader_of(trainer)
    labels = np.zeros((1, 9, 40, 40), np.int16)
    labels[:, :, 12:20, 8:30] = 1
    locations = {1: np.argwhere(labels == 1), 2: np.zeros((0, 4), int)}
    case = np.random.default_rng(0).normal(size=(1, 9, 40, 40)).astype(np.float32), labels, None
    loader._data.load_case = lambda name: (*case, {"class_locations": locations})
    moved = 0
    for _ in range(10):
        batch = next(loader)
        frames = batch["masks"][:, :1] == 1
        assert (batch["target"] == frames).all()
        assert not torch.equal(batch["data"][:, 0], batch["data"][:, 1])  # these are slices of their own
        moved += sum(not torch.equal(one[0], frames[0, 0]) for one in frames)
    assert moved > 5


def test_data_with_the_position_of_the_slice(trainer_of, monkeypatch):
    """Padding and augmentation leave it the same all over a frame."""
    trainer = trainer_of(batch_size=12)
    trainer.configuration_manager.configuration["preprocessor_name"] = "ReferencePreprocessor"
    looked_at = []
    monkeypatch.setattr(slice_triples, "look_at_reference_data", looked_at.append)
    loader = loader_of(trainer)
    assert looked_at == [trainer]
    rng = np.random.default_rng(0)
    image, labels = tiny.image_and_label(rng)
    position = np.broadcast_to(np.linspace(0, 1, 18, dtype=np.float32)[None, :, None, None], (1, 18, 16, 18))
    locations = {label: np.argwhere(labels == label) for label in (1, 2)}
    data = np.concatenate([image, position])
    loader._data.load_case = lambda name: (data, labels, None, {"class_locations": locations})
    batch = next(loader)
    assert batch["data"].shape[2] == 2
    assert all(len(one.unique()) == 1 for one in batch["data"][:, :, 1].flatten(0, 1))


@pytest.mark.parametrize("what", ["labels", "slices"])
def test_cases_that_give_no_triple(trainer_of, what):
    loader = loader_of(trainer_of())
    labels = np.zeros((1, 2 if what == "slices" else 9, 16, 16), np.int16)
    labels[..., 4:8] = what == "slices"
    locations = {1: np.argwhere(labels == 1), 2: np.zeros((0, 4), int)}
    image = np.zeros(labels.shape, np.float32)
    loader._data.load_case = lambda name: (image, labels, None, {"class_locations": locations})
    with pytest.raises(
        RuntimeError, match="200 times in a row no three slices .* at least 3 slices with labels; look at"
    ):
        next(loader)


def test_a_case_without_labels_is_drawn_anew(trainer_of):
    loader = loader_of(trainer_of())
    stock = loader._data.load_case

    def load_case(name):
        data, labels, before, properties = stock(name)
        return (
            (data, np.zeros(data.shape, np.int16), None, properties)
            if name == "case_1"
            else (data, labels, before, properties)
        )

    loader._data.load_case = load_case
    keys = [key for _ in range(10) for key in next(loader)["keys"]]
    assert len(keys) == 20
    assert set(keys) == set(loader._data.identifiers) - {"case_1"}


def test_a_damaged_case_is_named(trainer_of):
    trainer = trainer_of()
    loader = loader_of(trainer)
    for name in loader._data.identifiers:
        file = os.path.join(trainer.preprocessed_dataset_folder, f"{name}.b2nd")
        with open(file, "wb") as damaged:
            damaged.write(b"nothing")
    with pytest.raises(
        RuntimeError, match=r"preprocessed case case_\d in .* cannot be read .*; run: nnUNetv2_preprocess"
    ):
        next(loader)

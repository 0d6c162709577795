"""Unlabelled patches that are centred on classes, in trainers."""

from pathlib import Path

import numpy as np
import pytest

from nnunet_ext.data.class_locations import read_class_locations, save_class_locations
from nnunet_ext.data.loaders import two_stream_loader
from nnunet_ext.training import class_sampling


@pytest.mark.parametrize(("method", "kind"), [("MeanTeacher", "labels"), ("MeanTeacher", "regions"), ("CPS", "labels")])
def test_patches_are_centred_on_classes_that_the_network_saw(make_trainer, method, kind):
    trainer = make_trainer(f"nnUNetTrainer{method}_ClassBalance", kind=kind)
    trainer.class_sampling_refresh, trainer.class_sampling_share = 2, 1.0
    trainer.initialize()
    trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
    folder = Path(trainer.output_folder) / "unlabeled_class_locations"
    trainer.current_epoch = 0
    trainer.on_train_epoch_start()
    assert not folder.exists()  # nothing before pseudo-labels count
    trainer.current_epoch = round(trainer.warmup_fraction * trainer.num_epochs)
    was_training = trainer.network.training
    trainer.on_train_epoch_start()
    dataset = trainer._looked_for
    assert sorted(file.stem for file in folder.iterdir()) == dataset.identifiers
    assert trainer.network.training == was_training
    name = dataset.identifiers[0]
    places = dataset.load_case(name)[3]["class_locations"]
    assert len(places) == len(trainer.label_manager.foreground_regions if kind == "regions" else [1, 2])
    # A class that was seen in one voxel alone: every patch is centred there.
    shape = dataset.load_case(name)[0].shape[1:]
    labels = np.zeros(shape, int)
    labels[tuple(n // 2 for n in shape)] = 1
    for each in dataset.identifiers:
        save_class_locations(folder, each, labels, [1], 0)
    loader = two_stream_loader(trainer, dataset).unlabelled
    chosen, draw = [], loader.get_bbox
    loader.get_bbox = lambda *arguments: chosen.append(draw(*arguments)) or chosen[-1]
    next(loader), next(loader)
    assert len(chosen) == 2 * trainer.batch_size
    assert len({tuple(int(n) for n in first) for first, _ in chosen}) == 1


def test_without_class_sampling_patches_are_drawn_as_ever(make_trainer):
    trainer = make_trainer("nnUNetTrainerMeanTeacher_ClassBalance")
    trainer.initialize()
    dataset = trainer.unlabelled_cases()
    assert (dataset.class_share, dataset.locations) == (0, None)
    assert trainer._looked_for is None


def test_cases_are_looked_at_in_turns_from_the_end_of_the_warm_up_on(make_trainer, monkeypatch):
    trainer = make_trainer("nnUNetTrainerMeanTeacher_ClassBalance_20epochs_1iterations")
    trainer.class_sampling_refresh, trainer.class_sampling_cases = 7, 2
    trainer.initialize()
    trainer.get_dataloaders()
    looked = {}
    monkeypatch.setattr(
        class_sampling, "look_for_classes", lambda trainer, network, cases, names: looked.update({epoch: names})
    )
    settled = {}
    for epoch in range(20):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        settled[epoch] = trainer.shares_are_settled()
    assert list(looked) == [2, 9, 16]  # the warm-up takes a tenth
    assert {name for names in looked.values() for name in names} == set(trainer._looked_for.identifiers)
    assert [epoch for epoch in settled if not settled[epoch]] == list(range(9))  # all three cases in two turns


def test_another_training_in_the_folder_begins_without_places(make_trainer):
    trainer = make_trainer("nnUNetTrainerMeanTeacher_ClassBalance")
    trainer.class_sampling_refresh = 2
    trainer.initialize()
    left = Path(trainer.output_folder) / class_sampling.FOLDER / "case.npz"
    left.parent.mkdir(parents=True)
    left.touch()
    trainer.current_epoch = 4  # goes on
    trainer.unlabelled_cases()
    assert left.exists()
    trainer.current_epoch = 0
    trainer.unlabelled_cases()
    assert not left.exists()


def test_a_damaged_case_is_named_with_its_command(make_trainer):
    trainer = make_trainer("nnUNetTrainerMeanTeacher_ClassBalance")
    trainer.class_sampling_refresh = 2
    trainer.initialize()
    dataset = trainer.unlabelled_cases()
    name = dataset.identifiers[0]
    (Path(dataset.source_folder) / f"{name}.b2nd").write_bytes(b"no array")
    with pytest.raises(RuntimeError, match=rf"case {name} in .* cannot be read .*nnUNetv2_ext preprocess_unlabeled -d"):
        class_sampling.look_for_classes(trainer, trainer.teacher.network, dataset, [name])


def test_nothing_lies_where_nothing_is_learnt(make_trainer, monkeypatch):
    trainer = make_trainer("nnUNetTrainerMeanTeacher_ClassBalance")
    trainer.class_sampling_refresh = 2
    trainer.initialize()
    dataset = trainer.unlabelled_cases()
    name = dataset.identifiers[0]
    data, valid, _, _ = dataset.load_case(name)
    mask = np.zeros(valid.shape, np.uint8)
    mask[:, 1, 2, 3] = 1
    monkeypatch.setattr(dataset, "load_case", lambda name: (data, mask, None, {}))
    everywhere = np.ones(data.shape[1:], int)
    monkeypatch.setattr(trainer.label_manager, "convert_logits_to_segmentation", lambda logits: everywhere)
    class_sampling.look_for_classes(trainer, trainer.teacher.network, dataset, [name])
    places = read_class_locations(dataset.locations, name, data.shape[1:])
    assert places[0].tolist() == [[0, 1, 2, 3]]

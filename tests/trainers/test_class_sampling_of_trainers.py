"""Unlabelled patches that are centred on classes, in trainers."""

from pathlib import Path

import numpy as np
import pytest

from nnunet_ext.data.class_locations import save_class_locations
from nnunet_ext.data.loaders import two_stream_loader


@pytest.mark.parametrize(("method", "kind"), [("MeanTeacher", "labels"), ("MeanTeacher", "regions"), ("CPS", "labels")])
def test_patches_are_centred_on_classes_that_the_network_saw(make_trainer, method, kind):
    trainer = make_trainer(f"nnUNetTrainer{method}_ClassBalance", kind=kind)
    trainer.class_sampling_refresh, trainer.class_sampling_share = 2, 1.0
    trainer.initialize()
    trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
    folder = Path(trainer.output_folder) / "unlabeled_class_locations"
    trainer.current_epoch = 0
    if method == "MeanTeacher":
        trainer.on_train_epoch_start()
    assert not folder.exists()  # nothing before pseudo-labels count
    trainer.current_epoch = trainer.num_epochs // 2
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

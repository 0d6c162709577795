"""The preprocessor that appends the position: the same in training, for unlabelled scans, and in prediction."""

import json

import numpy as np
import pytest
from data.tiny_dataset import SHAPE, TinyDataset, make_plans, scan, write_image
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.data.preprocess import preprocess_unlabeled
from nnunet_ext.data.unlabeled_store import UnlabeledDataset
from nnunet_ext.inference.case import Model, prepare
from nnunet_ext.inference.spacing import ForcedSpacing, PlansSpacing
from nnunet_ext.planners.reference_preprocessor import ReferencePreprocessor

HEAD_FIRST = (1, 0, 0, 0, 1, 0, 0, 0, -1)
CORONAL = (1, 0, 0, 0, 0, 1, 0, -1, 0)
EMPTY = 3  # first slices without anything, which are cropped


@pytest.fixture
def reference(tiny: TinyDataset) -> TinyDataset:
    """Plans in 2D with the position; a scan labelled and unlabelled, stored from the feet, from the head, coronal."""
    plans = make_plans("ReferencePlans")
    del plans["configurations"]["3d_fullres"]
    plans["configurations"]["2d"] |= {
        "preprocessor_name": "ReferencePreprocessor",
        "normalization_schemes": ["HounsfieldNormalization"],
        "spacing": [1.8, 1.6],
    }
    tiny.write_plans(plans)
    image = scan(0)
    image[:EMPTY] = 0
    for name, direction in (("feet", None), ("head", HEAD_FIRST), ("coronal", CORONAL)):
        geometry = {} if direction is None else {"direction": direction}
        write_image(tiny.raw / "imagesTr" / f"{name}_0000.nii.gz", image, **geometry)
        write_image(tiny.raw / "labelsTr" / f"{name}.nii.gz", (image > 0).astype(np.uint8), **geometry)
        write_image(tiny.raw / "imagesUnlabeled" / f"u{name}_0000.nii.gz", image, **geometry)
    return tiny


def model_of(tiny: TinyDataset) -> Model:
    manager = PlansManager(json.loads((tiny.preprocessed / "ReferencePlans.json").read_text()))
    dataset_json = json.loads((tiny.preprocessed / "dataset.json").read_text())
    return Model(manager, manager.get_configuration("2d"), dataset_json, stock_resampling=True)


def test_training_unlabelled_and_test_cases_get_the_same(reference: TinyDataset, capsys):
    ReferencePreprocessor(verbose=False).run(777, "2d", "ReferencePlans", 1)
    said = capsys.readouterr().out
    for kind in ("labelled", "unlabelled"):
        assert said.count(f"in 1 of 3 {kind} cases the slices are not axial") == 1
    labelled = nnUNetDatasetBlosc2(str(reference.preprocessed / "ReferencePlans_2d"))
    unlabelled = UnlabeledDataset(reference.preprocessed / "ReferencePlans_2d_unlabeled", [])
    upwards = (np.arange(EMPTY, SHAPE[0]) / (SHAPE[0] - 1)).astype(np.float32)
    expected = {"feet": upwards, "head": (1 - np.arange(EMPTY, 12) / 11).astype(np.float32), "coronal": upwards}
    for name, positions in expected.items():
        data, *_, properties = labelled.load_case(name)
        data = data[:]
        assert data.shape[:2] == (2, len(positions))
        assert data.shape[2:] != scan(0).shape[1:]  # resampled within slices
        np.testing.assert_allclose(data[-1], np.broadcast_to(positions[:, None, None], data.shape[1:]), atol=1e-7)
        assert properties["slice_position"] == ("index" if name == "coronal" else "patient")
        np.testing.assert_array_equal(unlabelled.load_case(f"u{name}")[0][:], data)
        image = str(reference.raw / "imagesTr" / f"{name}_0000.nii.gz")
        prepared = prepare((image,), None, PlansSpacing(), model_of(reference))
        np.testing.assert_array_equal(prepared.data, data)
        stock, _, _ = ReferencePreprocessor(verbose=False).run_case(
            [image],
            None,
            model_of(reference).plans,
            model_of(reference).configuration,
            model_of(reference).dataset_json,
        )
        np.testing.assert_array_equal(stock, data)


def test_spacings_of_prediction_change_no_position(reference: TinyDataset):
    image, model = str(reference.raw / "imagesTr" / "head_0000.nii.gz"), model_of(reference)
    plain = prepare((image,), None, PlansSpacing(), model).data
    forced = prepare((image,), None, ForcedSpacing(2.0, 2.0, 9.0), model).data
    assert forced.shape[2:] != plain.shape[2:]
    np.testing.assert_array_equal(forced[-1, :, 0, 0], plain[-1, :, 0, 0])


def test_one_slice_lies_in_the_middle(reference: TinyDataset):
    model = model_of(reference)
    data = np.full((1, 1, 16, 14), 40, np.float32)
    properties = {"spacing": [2.4, 1.8, 1.6]}
    made, _, _ = ReferencePreprocessor(verbose=False).run_case_npy(
        data, None, properties, model.plans, model.configuration, model.dataset_json
    )
    assert (made[0] == np.float32(0.04)).all()
    assert (made[1] == 0.5).all()


def test_3d_is_refused(tiny: TinyDataset):
    manager = PlansManager(make_plans())
    image = tiny.add_unlabeled("u", 0)
    data, properties = SimpleITKIO().read_images([str(image)])
    with pytest.raises(
        ValueError, match="ReferencePreprocessor appends the position of slices, which only a 2d config"
    ):
        ReferencePreprocessor(verbose=False).run_case_npy(
            data, None, properties, manager, manager.get_configuration("3d_fullres"), {"labels": {"background": 0}}
        )


def test_the_command_for_unlabelled_cases_notices_that_the_position_was_switched_on(reference: TinyDataset, capsys):
    plans = json.loads((reference.preprocessed / "ReferencePlans.json").read_text())
    without = json.loads(json.dumps(plans))
    without["configurations"]["2d"]["preprocessor_name"] = "SemiSupervisedPreprocessor"
    reference.write_plans(without)
    assert len(preprocess_unlabeled(777, "ReferencePlans", "2d", 1, show_progress_bar=False).done) == 3
    assert "not axial" not in capsys.readouterr().out
    reference.write_plans(plans)
    assert len(preprocess_unlabeled(777, "ReferencePlans", "2d", 1, show_progress_bar=False).done) == 3
    assert len(preprocess_unlabeled(777, "ReferencePlans", "2d", 1, show_progress_bar=False).kept) == 3
    assert capsys.readouterr().out.count("in 1 of 3 unlabelled cases the slices are not axial") == 2  # once a run

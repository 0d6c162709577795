"""What the preparation of a case refuses."""

import numpy as np
import pytest
from inference.tiny_model import make_model, smooth_image
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

import nnunet_ext.inference.case as case_module
from nnunet_ext.inference import ForcedSpacing, MaxVoxels, TargetSpacing
from nnunet_ext.inference.case import Model, prepare
from nnunet_ext.inference.spacing import PlansSpacing


@pytest.fixture
def tiny_files(tmp_path):
    return make_model(tmp_path)


@pytest.fixture
def model(tiny_files):
    plans = PlansManager(str(tiny_files.folder / "plans.json"))
    import json

    dataset_json = json.loads((tiny_files.folder / "dataset.json").read_text())
    return Model(plans, plans.get_configuration("3d_fullres"), dataset_json)


@pytest.mark.parametrize(
    "spacing", [[0, 1, 1], [1, -1, 1], [1, 1, float("nan")], [1, float("inf"), 1], [1, 1], None, "a"]
)
def test_an_image_without_a_usable_spacing(model, spacing):
    with pytest.raises(
        ValueError, match=r"the image: its spacing is .*, expected 3 positive values in mm; correct the"
    ):
        prepare((smooth_image(1)[None], {"spacing": spacing}), None, ForcedSpacing(), model)


def test_the_file_is_named(tiny_files, model):
    path = str(tiny_files.add("case", 1))
    with pytest.raises(ValueError, match=rf"^{path}: --target_spacing 1 40 1 leaves 1 voxel\(s\) along y"):
        prepare((path,), None, TargetSpacing(1, 40, 1), model)


def test_more_than_memory_would_hold(tiny_files, model, monkeypatch):
    path = str(tiny_files.add("case", 1))
    with pytest.raises(ValueError, match=r"makes a volume of 60000 x .* take .* GiB; this machine has .*--max_voxels"):
        prepare((path,), None, TargetSpacing(0.001, 0.001, 0.001), model)
    # 20 x 26 x 30 voxels; image 4 bytes, 4 classes of 2 bytes
    needed = 20 * 26 * 30 * (4 + 4 * 2)
    monkeypatch.setattr(case_module, "total_memory_bytes", lambda: needed)
    prepare((path,), None, TargetSpacing(1, 1, 3), model)
    monkeypatch.setattr(case_module, "total_memory_bytes", lambda: needed - 1)
    with pytest.raises(ValueError, match="makes a volume of 20 x 26 x 30 voxels"):
        prepare((path,), None, TargetSpacing(1, 1, 3), model)
    monkeypatch.setattr(case_module, "total_memory_bytes", lambda: 1)
    prepare((path,), None, PlansSpacing(), model)  # what stock would try is tried
    monkeypatch.setattr(case_module, "total_memory_bytes", lambda: None)
    prepare((path,), None, TargetSpacing(1, 1, 3), model)


def test_non_finite_values(tiny_files, model):
    import SimpleITK

    path = tiny_files.add("case", 1)
    path = path.with_name("case_0000.nrrd")
    image = smooth_image(1)
    image[1, 2, 3] = np.inf
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(image), str(path))
    with pytest.raises(ValueError, match=rf"{path} has NaN or infinite values"):
        prepare((str(path),), None, PlansSpacing(), model)
    with pytest.raises(ValueError, match="the image has NaN or infinite values"):
        prepare((image[None], {"spacing": [1, 1, 1]}), None, PlansSpacing(), model)
    image[1, 2, 3] = np.nan  # which ITK's NIfTI reader turns into 0
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(image), str(tiny_files.images / "case_0000.nii.gz"))
    with pytest.raises(ValueError, match=r"case_0000\.nii\.gz has NaN or infinite values"):
        prepare((str(tiny_files.images / "case_0000.nii.gz"),), None, PlansSpacing(), model)


def test_the_number_of_channels(tiny_files, model):
    path = str(tiny_files.add("case", 1))
    with pytest.raises(ValueError, match=rf"{path} has 2 channel\(s\), expected 1 \(dataset\.json\)"):
        prepare((path, path), None, PlansSpacing(), model)
    with pytest.raises(ValueError, match=r"the image has 2 channel\(s\), expected 1"):
        prepare((np.ones((2, 4, 4, 4)), {"spacing": [1, 1, 1]}), None, PlansSpacing(), model)
    other = str(tiny_files.add("other", 1, shape=(9, 9, 9)))
    with pytest.raises(ValueError, match=rf"{other} has shape \(9, 9, 9\), but {path} has \(20, 26, 30\); channels of"):
        prepare((path, other), None, PlansSpacing(), model)


def test_a_previous_stage_that_does_not_fit(tiny_files, model):
    path, other = str(tiny_files.add("case", 1)), str(tiny_files.add("other", 1, shape=(9, 9, 9)))
    with pytest.raises(ValueError, match=rf"{other} has shape \(9, 9, 9\), but {path} has \(20, 26, 30\)"):
        prepare((path,), other, PlansSpacing(), model)
    with pytest.raises(ValueError, match=r"the previous stage's segmentation has shape \(9, 9, 9\), but"):
        prepare((path,), np.zeros((1, 9, 9, 9)), PlansSpacing(), model)
    with pytest.raises(ValueError, match=r"missing\.nii\.gz.*it must be the previous stage's result"):
        prepare((path,), str(tiny_files.images / "missing.nii.gz"), PlansSpacing(), model)


def test_max_voxels_counts_the_non_zero_part(model):
    image = np.zeros((1, 40, 40, 40), np.float32)
    image[0, 10:20, 5:35, 12:22] = smooth_image(1, (10, 30, 10))
    prepared = prepare((image, {"spacing": [2.0, 1.5, 1.25]}), None, MaxVoxels(10 * 30 * 10), model)
    assert prepared.data.shape == (1, 10, 30, 10)
    assert prepared.target == [2.0, 1.5, 1.25]
    assert prepared.record["resampled_shape"] == [10, 30, 10]


def test_an_image_of_zeros_does_not_stop_the_counting(model):
    image = np.zeros((1, 8, 8, 8), np.float32)
    assert case_module._non_zero_shape(image) == (8, 8, 8)


def test_a_preprocessing_that_fails_names_the_file(tiny_files, model, monkeypatch):
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    def fail(*_):
        raise AssertionError("shapes differ")

    monkeypatch.setattr(DefaultPreprocessor, "_normalize", fail)
    path = str(tiny_files.add("case", 1))
    with pytest.raises(RuntimeError, match=rf"^{path} cannot be preprocessed: AssertionError: shapes differ"):
        prepare((path,), None, PlansSpacing(), model)

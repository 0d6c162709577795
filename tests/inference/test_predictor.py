"""The predictor beside nnU-Net's, on a model with random weights."""

import json
import os
import pickle
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from inference.tiny_model import REGIONS, TinyModel, make_model, smooth_image
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape, resample_data_or_seg_to_shape
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_ext import files
from nnunet_ext.files import PREFIX
from nnunet_ext.inference import ForcedSpacing, MaxVoxels, PredictionFailedError, Predictor, TargetSpacing
from nnunet_ext.inference.predictor import BadInputError
from nnunet_ext.inference.writing import Handover

KEEP = TargetSpacing(-1, -1, -1)  # our way of doing it, with nnU-Net's spacing


@pytest.fixture
def model(tmp_path: Path) -> TinyModel:
    return make_model(tmp_path)


def read(path: Path) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


def predict(model: TinyModel, output: Path, kind=Predictor, **options):
    """Predict all images in this process."""
    output.mkdir(exist_ok=True)
    call = {key: options.pop(key) for key in ("save_probabilities", "overwrite", "previous") if key in options}
    if "previous" in call:
        call["folder_with_segs_from_prev_stage"] = str(call.pop("previous"))
    model.predictor(kind, **options).predict_from_files_sequential(str(model.images), str(output), **call)
    return output


CASES = {
    "anisotropic": {"seed": 1},
    "fine": {"seed": 2, "spacing": (1.0, 0.8, 0.8), "shape": (30, 40, 34)},
    "coarse": {"seed": 3, "spacing": (4.0, 3.0, 3.0), "shape": (9, 12, 14)},
    "flipped": {"seed": 4, "direction": (-1, 0, 0, 0, -1, 0, 0, 0, 1), "origin": (10, 20, -30)},
}


class TestWithoutOptions:
    def test_it_is_nnunets_predictor(self, model, tmp_path, monkeypatch):
        calls = []
        names = (
            "predict_from_files",
            "predict_from_files_sequential",
            "predict_from_list_of_npy_arrays",
            "predict_single_npy_array",
            "predict_from_data_iterator",
        )
        for name in names:
            monkeypatch.setattr(nnUNetPredictor, name, lambda self, *a, name=name, **k: calls.append((name, a, k)))
        predictor = model.predictor(Predictor)
        predictor.predict_from_files("in", "out", part_id=0)
        predictor.predict_from_files_sequential("in", "out", True)
        predictor.predict_from_list_of_npy_arrays([], None, [], None)
        predictor.predict_single_npy_array(np.zeros(1), {})
        predictor.predict_from_data_iterator([])
        assert [name for name, _, _ in calls] == list(names)
        assert calls[1][2]["save_probabilities"] is True


class TestSameAsStock:
    @pytest.mark.parametrize("labels", [None, REGIONS])
    @pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
    def test_label_maps(self, tmp_path, configuration, labels):
        model = make_model(tmp_path, configuration, labels)
        for name, image in CASES.items():
            model.add(name, **image)
        stock = predict(model, tmp_path / "stock", nnUNetPredictor)
        fast = predict(model, tmp_path / "fast", fast_export=True)
        ours = predict(model, tmp_path / "ours", spacing=KEEP)
        for name in CASES:
            expected = read(stock / f"{name}.nii.gz")
            assert len(np.unique(expected)) >= 3
            np.testing.assert_array_equal(read(ours / f"{name}.nii.gz"), expected)
            assert (read(fast / f"{name}.nii.gz") != expected).mean() <= 1e-4

    def test_transposed_axes(self, tmp_path):
        model = make_model(tmp_path, transpose_forward=[2, 0, 1], transpose_backward=[1, 2, 0])
        model.add("case", 1)
        stock = predict(model, tmp_path / "stock", nnUNetPredictor)
        for options in ({"fast_export": True}, {"spacing": KEEP}):
            ours = predict(model, tmp_path / "ours", **options)
            np.testing.assert_array_equal(read(ours / "case.nii.gz"), read(stock / "case.nii.gz"))

    def test_images_with_a_black_border(self, model, tmp_path):
        path = model.add("case", 1)
        image = SimpleITK.ReadImage(str(path))
        array = SimpleITK.GetArrayFromImage(image)
        array[:4], array[:, :, -5:], array[:, 7, 3:9] = 0, 0, 0
        bordered = SimpleITK.GetImageFromArray(array)
        bordered.CopyInformation(image)
        SimpleITK.WriteImage(bordered, str(path))
        stock = predict(model, tmp_path / "stock", nnUNetPredictor)
        fast = predict(model, tmp_path / "fast", fast_export=True, spacing=KEEP)
        np.testing.assert_array_equal(read(fast / "case.nii.gz"), read(stock / "case.nii.gz"))
        record = json.loads((fast / "spacing_report.json").read_text())["cases"]["case"]
        assert record["shape"] == [30, 26, 20]
        assert record["resampled_shape"] == [20, 17, 24]  # 25 x 1 / 1.25, 26 / 1.5, 16 x 3 / 2

    @pytest.mark.parametrize(("shape", "spacing"), [((2, 26, 30), (0.6, 1, 1)), ((1, 26, 30), (3, 1, 1))])
    def test_thin_images(self, model, tmp_path, shape, spacing):
        model.add("case", 1, spacing, shape=shape)
        stock = predict(model, tmp_path / "stock", nnUNetPredictor)
        for options in ({"fast_export": True}, {"spacing": KEEP, "fast_export": True}):
            ours = predict(model, tmp_path / "ours", **options)
            np.testing.assert_array_equal(read(ours / "case.nii.gz"), read(stock / "case.nii.gz"))

    def test_probabilities(self, model, tmp_path, capsys):
        model.add("case", 1)
        stock = predict(model, tmp_path / "stock", nnUNetPredictor, save_probabilities=True)
        ours = predict(model, tmp_path / "ours", fast_export=True, spacing=KEEP, save_probabilities=True)
        assert "--fast_export: probabilities are wanted; nnU-Net's own export is used." in capsys.readouterr().out
        found, expected = (np.load(folder / "case.npz")["probabilities"] for folder in (ours, stock))
        assert found.shape == (4, 20, 26, 30)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert (ours / "case.pkl").is_file()

    def test_a_cascade(self, tmp_path):
        content = make_model(tmp_path / "first")
        content.add("case", 1)
        previous = predict(content, tmp_path / "previous", nnUNetPredictor)
        model = make_model(tmp_path / "second", change={"previous_stage": "3d_lowres"})
        model.add("case", 1)
        stock = predict(model, tmp_path / "stock", nnUNetPredictor, previous=previous)
        fast = predict(model, tmp_path / "fast", fast_export=True, previous=previous)
        np.testing.assert_array_equal(read(fast / "case.nii.gz"), read(stock / "case.nii.gz"))
        with pytest.raises(
            BadInputError, match="this configuration is a cascade and needs the predictions of 3d_lowres"
        ):
            predict(model, tmp_path / "none", fast_export=True)

    def test_arrays(self, model):
        images = [smooth_image(seed) for seed in (1, 2)]
        arrays, properties = [image[None] for image in images], [{"spacing": [3.0, 1.0, 1.0]} for _ in images]
        stock, fast = model.predictor(nnUNetPredictor), model.predictor(Predictor, fast_export=True)
        expected = [stock.predict_single_npy_array(a, dict(p)) for a, p in zip(arrays, properties, strict=True)]
        for number, image in enumerate(arrays):
            before = image.copy()
            np.testing.assert_array_equal(fast.predict_single_npy_array(image, properties[number]), expected[number])
            np.testing.assert_array_equal(image, before)
        found = fast.predict_from_list_of_npy_arrays(arrays, None, properties, None, 0, False, 0)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
        labels, probabilities = fast.predict_single_npy_array(arrays[0], properties[0], None, None, True)
        np.testing.assert_array_equal(labels, expected[0])
        assert probabilities.shape == (4, 20, 26, 30)
        assert properties[0] == {"spacing": [3.0, 1.0, 1.0]}

    def test_without_an_output_folder_results_come_back(self, model):
        model.add("case", 1)
        predictor = model.predictor(Predictor, fast_export=True)
        (found,) = predictor.predict_from_files_sequential(str(model.images), None)
        (expected,) = model.predictor(nnUNetPredictor).predict_from_files_sequential(str(model.images), None)
        np.testing.assert_array_equal(found, expected)

    def test_results_of_the_same_name_in_two_folders(self, model, tmp_path):
        images = [str(model.add(name, seed)) for name, seed in (("a", 1), ("b", 2))]
        outputs = [str(tmp_path / folder / "case") for folder in ("one", "two")]
        (tmp_path / "one").mkdir()
        model.predictor(Predictor, fast_export=True).predict_from_files_sequential([[i] for i in images], outputs)
        (expected,) = model.predictor(nnUNetPredictor).predict_from_files_sequential([[images[1]]], None)
        np.testing.assert_array_equal(read(tmp_path / "two" / "case.nii.gz"), expected)
        assert sorted(json.loads((tmp_path / "one" / "spacing_report.json").read_text())["cases"]) == outputs


class TestSpacings:
    def by_hand(self, model, name, declared, target):
        """Resample the image by hand, predict it without resampling, and resample the logits by hand."""
        predictor = model.predictor(nnUNetPredictor)
        image = read(model.images / f"{name}_0000.nii.gz")[None].astype(np.float32)
        shape = image.shape[1:]
        image = (image - image.mean()) / image.std()
        new_shape = compute_new_shape(shape, declared, target)
        data = resample_data_or_seg_to_shape(image, new_shape, declared, target, order=3, force_separate_z=None)
        logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data)).numpy()
        logits = resample_data_or_seg_to_shape(logits, shape, target, declared, order=1, force_separate_z=None)
        return logits.argmax(0)

    def test_target_spacing(self, model, tmp_path):
        model.add("case", 1, (3.0, 1.0, 0.9))
        output = predict(model, tmp_path / "out", spacing=TargetSpacing(1.8, -1, 2.5))
        np.testing.assert_array_equal(
            read(output / "case.nii.gz"), self.by_hand(model, "case", [3.0, 1.0, 0.9], [2.5, 1.5, 1.8])
        )

    def test_forced_spacing(self, model, tmp_path, capsys):
        model.add("case", 1, (3.0, 1.0, 0.9))  # 20 slices: z stays true
        output = predict(model, tmp_path / "out", spacing=ForcedSpacing(0.5, 0.75, 9))
        np.testing.assert_array_equal(
            read(output / "case.nii.gz"), self.by_hand(model, "case", [3.0, 0.75, 0.5], [2.0, 1.5, 1.25])
        )
        record = json.loads((output / "spacing_report.json").read_text())["cases"]["case"]
        assert record["true_spacing"] == [0.9, 1, 3]
        assert record["declared_spacing"] == [0.5, 0.75, 3]
        assert record["target_spacing"] == [1.25, 1.5, 2]
        assert record["stretch"] == pytest.approx([0.5 / 0.9, 0.75, 1], abs=1e-5)
        assert record["resampled_shape"] == [12, 13, 30]
        assert record["voxels"] == 12 * 13 * 30
        assert record["patches"] == 1 * 1 * 3  # 16 voxels a patch, step 8
        assert set(record["seconds"]) == {"reading", "preprocessing", "network", "resampling", "writing"}
        assert min(record["peak_memory_mib"].values()) > 0
        said = capsys.readouterr().out
        assert "case: 30 x 26 x 20 voxels of 0.9 x 1 x 3 mm; declared as 0.5 x 0.75 x 3 mm; resampled to 1.25" in said
        assert "times as large as in training: x 0.556, y 0.75, z 1" in said

    def test_a_sagittal_image(self, model, tmp_path):
        # image axes run front-back, head-foot, left-right; so array axes are x, z, y
        model.add("case", 1, (3.0, 1.0, 0.9), direction=(0, 0, 1, 1, 0, 0, 0, 1, 0))
        output = predict(model, tmp_path / "out", spacing=TargetSpacing(4, 2.2, 3))
        np.testing.assert_array_equal(
            read(output / "case.nii.gz"), self.by_hand(model, "case", [3.0, 1.0, 0.9], [4.0, 3.0, 2.2])
        )

    def test_max_voxels(self, model, tmp_path):
        model.add("case", 1)
        output = predict(model, tmp_path / "out", spacing=MaxVoxels(3000), fast_export=True)
        record = json.loads((output / "spacing_report.json").read_text())["cases"]["case"]
        assert 2500 < record["voxels"] <= 3000
        assert record["target_spacing"] == pytest.approx(
            [1.25 * f for f in [record["target_spacing"][0] / 1.25]]
            + [1.2 * record["target_spacing"][0], 1.6 * record["target_spacing"][0]],
            rel=1e-4,
        )

    def test_2d_says_that_only_the_in_plane_values_act(self, tmp_path, capsys):
        model = make_model(tmp_path, "2d")
        for name in ("a", "b"):
            model.add(name, 1)
        output = predict(model, tmp_path / "out", spacing=ForcedSpacing())
        assert capsys.readouterr().out.count("only the in-plane values act") == 1
        record = json.loads((output / "spacing_report.json").read_text())["cases"]["a"]
        assert record["target_spacing"] == [1.25, 1.5, None]
        assert record["resampled_shape"] == [18, 13, 20]
        assert record["patches"] == 20 * 2

    def test_arrays_without_a_direction_are_said_to_have_none_once(self, model, capsys):
        predictor = model.predictor(Predictor, spacing=ForcedSpacing())
        images, properties = [smooth_image(seed)[None] for seed in (1, 2)], [{"spacing": [3.0, 1.0, 1.0]}] * 2
        found = predictor.predict_from_list_of_npy_arrays(images, None, properties, None, 0, False, 0)
        assert [one.shape for one in found] == [(20, 26, 30)] * 2
        assert capsys.readouterr().out.count("have no direction: their first array axis is taken for the axial") == 1

    def test_probabilities_have_the_images_size_and_the_true_spacing(self, model, tmp_path):
        model.add("case", 1)
        output = predict(model, tmp_path / "out", spacing=ForcedSpacing(), save_probabilities=True)
        probabilities = np.load(output / "case.npz")["probabilities"]
        assert probabilities.shape == (4, 20, 26, 30)
        np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-4)
        np.testing.assert_array_equal(probabilities.argmax(0), read(output / "case.nii.gz"))
        assert pickle.loads((output / "case.pkl").read_bytes())["spacing"] == [3, 1, 1]


class TestGeometry:
    @pytest.mark.parametrize("options", [{"spacing": ForcedSpacing(0.7, 0.6, 3)}, {"spacing": TargetSpacing(2, 2, 2)}])
    @pytest.mark.parametrize("fast", [False, True])
    @pytest.mark.parametrize(
        ("reader", "ending"),
        [
            ("SimpleITKIO", ".nii.gz"),
            ("SimpleITKIO", ".nrrd"),
            ("SimpleITKIO", ".mha"),
            ("SimpleITKIOWithReorient", ".nii.gz"),
            ("NibabelIO", ".nii.gz"),
            ("NibabelIOWithReorient", ".nii.gz"),
        ],
    )
    def test_headers_come_through(self, tmp_path, reader, ending, fast, options):
        model = make_model(tmp_path, image_reader_writer=reader, file_ending=ending)
        oblique = (0, 0.6, 0.8, 1, 0, 0, 0, 0.8, -0.6)  # image axes along y, and tilted between x and z
        path = model.add("case", 1, (3.0, 1.0, 0.9), origin=(-3.0, 4.5, 100.0), direction=oblique)
        output = predict(model, tmp_path / "out", fast_export=fast, **options)
        before, after = (SimpleITK.ReadImage(str(file)) for file in (path, output / f"case{ending}"))
        assert after.GetSize() == before.GetSize()
        for name in ("Spacing", "Origin", "Direction"):
            np.testing.assert_allclose(getattr(after, f"Get{name}")(), getattr(before, f"Get{name}")(), atol=1e-5)
        if ending == ".nii.gz":
            np.testing.assert_allclose(
                nibabel.load(output / f"case{ending}").affine, nibabel.load(path).affine, atol=1e-4
            )

    def test_tiff_with_its_spacing_file(self, tmp_path):
        import tifffile

        model = make_model(tmp_path, image_reader_writer="Tiff3DIO", file_ending=".tif")
        tifffile.imwrite(model.images / "case_0000.tif", smooth_image(1))
        (model.images / "case.json").write_text(json.dumps({"spacing": [3.0, 1.0, 0.9]}))
        output = predict(model, tmp_path / "out", fast_export=True, spacing=ForcedSpacing())
        assert tifffile.imread(output / "case.tif").shape == (20, 26, 30)
        assert json.loads((output / "case.json").read_text()) == {"spacing": [3.0, 1.0, 0.9]}

    def test_2d_pictures(self, tmp_path):
        from skimage import io

        model = make_model(tmp_path, "2d", image_reader_writer="NaturalImage2DIO", file_ending=".png")
        picture = smooth_image(1, (1, 40, 50))[0].astype(np.uint8)
        io.imsave(model.images / "case_0000.png", picture, check_contrast=False)
        output = predict(model, tmp_path / "out", fast_export=True, spacing=TargetSpacing(2, 2, 2))
        assert io.imread(output / "case.png").shape == (40, 50)
        record = json.loads((output / "spacing_report.json").read_text())["cases"]["case"]
        assert record["resampled_shape"] == [25, 20, 1]


class TestFallback:
    def test_resampling_that_is_not_linear(self, tmp_path, capsys):
        change = {"resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 3, "force_separate_z": None}}
        model = make_model(tmp_path, change=change)
        for name in ("a", "b"):
            model.add(name, 1)
        stock = predict(model, tmp_path / "stock", nnUNetPredictor)
        fast = predict(model, tmp_path / "fast", fast_export=True)
        np.testing.assert_array_equal(read(fast / "a.nii.gz"), read(stock / "a.nii.gz"))
        text = "--fast_export: the plans' resampling of probabilities (resample_data_or_seg_to_shape) is not linear"
        assert capsys.readouterr().out.count(text) == 1

    def test_a_label_manager_of_somebody_else(self, model, monkeypatch, tmp_path, capsys):
        class OwnLabelManager(LabelManager):
            pass

        monkeypatch.setattr(
            "nnunetv2.utilities.plans_handling.plans_handler.get_labelmanager_class_from_plans",
            lambda _: OwnLabelManager,
        )
        model.add("case", 1)
        predict(model, tmp_path / "fast", fast_export=True)
        assert "the plans have a label manager of their own" in capsys.readouterr().out

    def test_a_preprocessor_of_somebody_else_gets_its_segmentation_resampled(self, model, monkeypatch):
        seen = []

        class Own(DefaultPreprocessor):
            def run_case_npy(self, data, seg, properties, plans_manager, configuration_manager, dataset_json):
                found = super().run_case_npy(data, seg, properties, plans_manager, configuration_manager, dataset_json)
                seen.append(found[1].min())  # -1 outside the non-zero part
                return found

        import nnunetv2.utilities.plans_handling.plans_handler as handler

        monkeypatch.setattr(handler.ConfigurationManager, "preprocessor_class", property(lambda _: Own))
        image = smooth_image(1)
        image[5:12, 10:, 8:20] = 0
        model.predictor(Predictor, fast_export=True).predict_single_npy_array(image[None], {"spacing": [2, 1.5, 1.25]})
        assert seen == [-1]


class TestBadCases:
    def break_one(self, model) -> Path:
        model.add("a", 1)
        model.add("c", 2)
        broken = model.images / "b_0000.nii.gz"
        broken.write_bytes(b"no image")
        return broken

    def test_one_bad_case_never_costs_the_others(self, model, tmp_path):
        broken = self.break_one(model)
        with pytest.raises(PredictionFailedError) as caught:
            predict(model, tmp_path / "out", fast_export=True)
        assert list(caught.value.failures) == ["b"]
        assert str(broken) in caught.value.failures["b"]
        assert str(caught.value).startswith("1 of 3 case(s) failed; the others are done and kept.\n  b: ")
        assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["a.nii.gz", "c.nii.gz"]
        assert sorted(json.loads((tmp_path / "out" / "spacing_report.json").read_text())["cases"]) == ["a", "c"]
        # mended and continued, only the case that was missing is predicted
        times = {name: (tmp_path / "out" / f"{name}.nii.gz").stat().st_mtime_ns for name in "ac"}
        model.add("b", 3)
        predict(model, tmp_path / "out", fast_export=True, overwrite=False)
        assert sorted(json.loads((tmp_path / "out" / "spacing_report.json").read_text())["cases"]) == ["a", "b", "c"]
        assert times == {name: (tmp_path / "out" / f"{name}.nii.gz").stat().st_mtime_ns for name in "ac"}

    def test_results_of_the_others_come_with_the_error(self, model):
        self.break_one(model)
        with pytest.raises(PredictionFailedError) as caught:
            model.predictor(Predictor, fast_export=True).predict_from_files_sequential(str(model.images), None)
        assert [None if one is None else one.shape for one in caught.value.results] == [
            (20, 26, 30),
            None,
            (20, 26, 30),
        ]

    @pytest.mark.parametrize("problem", [torch.cuda.OutOfMemoryError("CUDA out of memory"), AssertionError("odd")])
    def test_a_failing_network_costs_its_case(self, model, tmp_path, monkeypatch, problem):
        model.add("a", 1)
        model.add("b", 2)
        original = nnUNetPredictor.predict_logits_from_preprocessed_data
        calls = []

        def out_of_memory_once(self, data):
            calls.append(1)
            if len(calls) == 1:
                raise problem
            return original(self, data)

        monkeypatch.setattr(nnUNetPredictor, "predict_logits_from_preprocessed_data", out_of_memory_once)
        with pytest.raises(PredictionFailedError, match=rf"1 of 2 case.*\n  a: {problem}"):
            predict(model, tmp_path / "out", fast_export=True)
        assert (tmp_path / "out" / "b.nii.gz").is_file()

    def test_a_write_that_fails_leaves_nothing_half_written(self, model, tmp_path, monkeypatch):
        from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

        def write_half(self, seg, name, properties):
            Path(name).write_bytes(b"half")
            raise OSError("No space left on device")

        model.add("case", 1)
        monkeypatch.setattr(SimpleITKIO, "write_seg", write_half)
        with pytest.raises(PredictionFailedError, match="case: No space left on device"):
            predict(model, tmp_path / "out", fast_export=True)
        names = {"plans.json", "dataset.json", "predict_from_raw_data_args.json"}
        assert {path.name for path in (tmp_path / "out").iterdir()} == names

    def test_the_label_map_comes_last_for_it_stands_for_a_finished_case(self, model, tmp_path, monkeypatch):
        moved = []
        original = os.replace
        monkeypatch.setattr(os, "replace", lambda a, b: moved.append(Path(b).name) or original(a, b))
        model.add("case", 1)
        predict(model, tmp_path / "out", spacing=KEEP, save_probabilities=True)
        assert [name for name in moved if name.startswith("case")][-1] == "case.nii.gz"
        assert {"case.npz", "case.pkl"} < set(moved)

    def test_what_a_killed_run_left_is_removed_but_not_what_a_living_one_writes(self, model, tmp_path):
        import subprocess
        import sys

        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        output = tmp_path / "out"
        folders = [
            output / f"{PREFIX}{host}_{pid}_0_x"
            for host, pid in (
                (files._machine(), dead.pid),
                (files._machine(), os.getppid()),
                ("elsewhere", dead.pid),
            )
        ]
        for folder in folders:
            folder.mkdir(parents=True)
            (folder / "case.nii.gz").write_bytes(b"half")
        model.add("case", 1)
        predict(model, output, fast_export=True)
        assert [folder.exists() for folder in folders] == [False, True, True]

    def test_cases_predicted_otherwise_are_named_when_continuing(self, model, tmp_path, capsys):
        model.add("a", 1)
        predict(model, tmp_path / "out", spacing=TargetSpacing(3, 3, 3))
        model.add("b", 1)
        predict(model, tmp_path / "out", spacing=ForcedSpacing(), overwrite=False)
        said = capsys.readouterr().out
        assert "Kept as they are, though predicted with spacing --target_spacing 3 3 3: a" in said
        cases = json.loads((tmp_path / "out" / "spacing_report.json").read_text())["cases"]
        assert cases["a"]["predicted_with"]["spacing"] == "--target_spacing 3 3 3"
        assert cases["b"]["predicted_with"]["spacing"] == "--forced_spacing 0.75 0.75 0.5"
        model.add("c", 1)
        (tmp_path / "out" / "other.nii.gz").write_bytes(b"of another run")
        options = {"spacing": ForcedSpacing(), "fast_export": True, "tile_step_size": 0.9}
        predict(model, tmp_path / "out", overwrite=False, **options)
        said = capsys.readouterr().out
        target = "spacing --target_spacing 3 3 3, fast_export False, tile_step_size 0.5"
        assert f"Kept as they are, though predicted with {target}: a" in said
        assert "Kept as they are, though predicted with fast_export False, tile_step_size 0.5: b" in said
        assert "Kept as they are, though predicted without a record of how: other" in said

    def test_a_failed_case_with_an_older_result_says_so(self, model, tmp_path):
        path = model.add("a", 1)
        predict(model, tmp_path / "out", fast_export=True)
        path.write_bytes(b"no image")
        with pytest.raises(PredictionFailedError, match="an older result is still there; remove it before you use"):
            predict(model, tmp_path / "out", fast_export=True)

    def test_a_report_that_cannot_be_written_costs_no_prediction(self, model, tmp_path, monkeypatch):
        from nnunet_ext.inference.spacing_report import SpacingReport

        def full(*_):
            raise OSError("No space left on device")

        monkeypatch.setattr(SpacingReport, "add", full)
        for name in "ab":
            model.add(name, 1)
        with pytest.raises(
            PredictionFailedError, match=r"2 of 2.*\n  a: its label map is there and whole, but not its"
        ):
            predict(model, tmp_path / "out", fast_export=True)
        assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["a.nii.gz", "b.nii.gz"]

    def test_a_preprocessor_with_a_run_case_of_its_own_is_refused(self, model, monkeypatch):
        import nnunetv2.utilities.plans_handling.plans_handler as handler

        class Own(DefaultPreprocessor):
            def run_case(self, *arguments):
                return super().run_case(*arguments)

        monkeypatch.setattr(handler.ConfigurationManager, "preprocessor_class", property(lambda _: Own))
        predictor = model.predictor(Predictor, fast_export=True)
        with pytest.raises(BadInputError, match="preprocessor Own has a run_case of its own"):
            predictor.predict_single_npy_array(smooth_image(1)[None], {"spacing": [1, 1, 1]})
        with pytest.raises(BadInputError, match="preprocessor Own has a run_case of its own"):
            predictor.predict_from_files_sequential(str(model.images), None)

    def test_an_empty_folder_is_named(self, model, tmp_path):
        with pytest.raises(BadInputError, match=r"no images in .*images; expected files named CASE_0000\.nii\.gz"):
            predict(model, tmp_path / "out", fast_export=True)

    def test_preprocessed_data_come_too_late(self, model):
        with pytest.raises(BadInputError, match="takes preprocessed data, where --forced_spacing .* come too late"):
            model.predictor(Predictor, spacing=ForcedSpacing()).predict_from_data_iterator([])


def test_an_array_handed_over_is_not_kept():
    array = np.arange(6.0)
    handover = Handover(array)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(handover)), array)
    assert handover.array is None


def test_the_same_name_twice_loses_no_result(model):
    path = str(model.add("a", 1))
    found = model.predictor(Predictor, fast_export=True).predict_from_files_sequential([[path], [path]], None)
    np.testing.assert_array_equal(*found)
    assert len(found) == 2


class TestParts:
    def test_each_part_has_its_cases_and_its_report(self, model, tmp_path):
        for name in "abc":
            model.add(name, 1)
        for part in range(2):
            predictor = model.predictor(Predictor, fast_export=True, part=(part, 2))
            (tmp_path / "out").mkdir(exist_ok=True)
            predictor.predict_from_files_sequential(str(model.images), str(tmp_path / "out"))
        reports = [json.loads((tmp_path / "out" / f"spacing_report_part_{n}_of_2.json").read_text()) for n in range(2)]
        assert [sorted(report["cases"]) for report in reports] == [["a", "c"], ["b"]]

    def test_a_part_that_there_is_not(self, model, tmp_path):
        predictor = model.predictor(Predictor, fast_export=True)
        with pytest.raises(BadInputError, match=r"part_id must lie in 0 to 1 \(num_parts - 1\), got 2"):
            predictor.predict_from_files(str(model.images), str(tmp_path / "out"), num_parts=2, part_id=2)


def test_in_parallel_it_is_the_same(model, tmp_path):
    for name, image in CASES.items():
        model.add(name, **image)
    (model.images / "broken_0000.nii.gz").write_bytes(b"no image")
    with pytest.raises(PredictionFailedError, match="1 of 5"):
        predict(model, tmp_path / "sequential", spacing=TargetSpacing(2, 2, 2))
    for name, options in (("fast", {"fast_export": True}), ("slow", {})):
        predictor = model.predictor(Predictor, spacing=TargetSpacing(2, 2, 2), **options)
        with pytest.raises(PredictionFailedError, match="1 of 5"):
            predictor.predict_from_files(
                str(model.images),
                str(tmp_path / name),
                num_processes_preprocessing=1,
                num_processes_segmentation_export=1,
            )
        for case in CASES:
            found, expected = (read(tmp_path / run / f"{case}.nii.gz") for run in (name, "sequential"))
            np.testing.assert_array_equal(found, expected)


def write_short(monkeypatch, ending, length):
    """Let ITK write no more than some bytes and say nothing, as on a full disk; returns what it wrote."""
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    written, original = [], SimpleITKIO.write_seg

    def write(self, seg, name, properties):
        original(self, seg, name, properties)
        with open(name, "r+b") as file:
            file.truncate(length)
        written.append(Path(name).name)

    assert ending in (".nii.gz", ".nii", ".mha", ".nrrd", ".gipl")
    monkeypatch.setattr(SimpleITKIO, "write_seg", write)
    return written


class TestFullDisk:
    @pytest.mark.parametrize("length", [0, 400])
    @pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd", ".gipl"])
    @pytest.mark.parametrize("options", [{"fast_export": True}, {"spacing": KEEP}])
    def test_a_label_map_that_is_not_whole_stops_the_run(self, tmp_path, monkeypatch, ending, length, options):
        model = make_model(tmp_path, file_ending=ending)
        for seed, name in enumerate("abc"):
            model.add(name, seed)
        with monkeypatch.context() as patch:
            written = write_short(patch, ending, length)
            with pytest.raises(PredictionFailedError) as caught:
                predict(model, tmp_path / "out", **options)
        assert written == [f"a{ending}"]
        assert str(caught.value).startswith("1 of 3 case(s) failed; 2 more were not begun.\n  a: ")
        target = tmp_path / "out" / f"a{ending}"
        assert f"{target} cannot be written ([Errno 28] what was written is not whole): no room" in str(caught.value)
        assert caught.value.not_begun == ["b", "c"]
        assert {path.name for path in (tmp_path / "out").iterdir()} == {
            "plans.json",
            "dataset.json",
            "predict_from_raw_data_args.json",
        }
        predict(model, tmp_path / "out", overwrite=False, **options)
        assert {path.name for path in (tmp_path / "out").glob(f"*{ending}")} == {f"{name}{ending}" for name in "abc"}

    def test_an_older_result_stays(self, model, tmp_path, monkeypatch):
        model.add("a", 1)
        predict(model, tmp_path / "out", fast_export=True)
        before = (tmp_path / "out" / "a.nii.gz").read_bytes()
        write_short(monkeypatch, ".nii.gz", 0)
        with pytest.raises(PredictionFailedError, match="an older result is still there"):
            predict(model, tmp_path / "out", fast_export=True)
        assert (tmp_path / "out" / "a.nii.gz").read_bytes() == before

    def test_workers_say_so_too(self, model, tmp_path, monkeypatch):
        model.add("a", 1)
        monkeypatch.setattr(files, "_free_bytes", lambda _: 0)

        def full(*_, **__):
            raise RuntimeError("unexpected pos 64 vs 0")

        monkeypatch.setattr(np, "savez_compressed", full)
        with pytest.raises(
            PredictionFailedError, match=r"a.nii.gz cannot be written \(unexpected pos.*: no room on its"
        ):
            predict(model, tmp_path / "out", spacing=KEEP, save_probabilities=True)
        assert not list((tmp_path / "out").glob("a*"))

    def test_a_report_without_room_stops_the_run(self, model, tmp_path, monkeypatch):
        from nnunet_ext.inference.spacing_report import SpacingReport

        def full(*_):
            raise files.DiskFullError("spacing_report.json cannot be written")

        for name in "ab":
            model.add(name, 1)
        monkeypatch.setattr(SpacingReport, "add", full)
        with pytest.raises(PredictionFailedError, match="1 of 2 case.* 1 more were not begun") as caught:
            predict(model, tmp_path / "out", fast_export=True)
        assert caught.value.not_begun == ["b"]


class TestGoingOn:
    def test_label_maps_that_are_not_whole_are_predicted_again(self, model, tmp_path, capsys):
        for seed, name in enumerate("abcd"):
            model.add(name, seed)
        output = predict(model, tmp_path / "out", fast_export=True)
        whole = {name: (output / f"{name}.nii.gz").read_bytes() for name in "abcd"}
        (output / "spacing_report.json").unlink()  # as nnU-Net's own prediction leaves it
        (output / "a.nii.gz").write_bytes(b"")
        (output / "b.nii.gz").write_bytes(whole["b"][:300])
        before = (output / "c.nii.gz").stat().st_mtime_ns
        capsys.readouterr()
        predict(model, output, fast_export=True, overwrite=False)
        said = capsys.readouterr().out
        assert f"a is predicted again: {output}/a.nii.gz is empty" in said
        assert f"b is predicted again: {output}/b.nii.gz is cut off" in said
        assert "That's 2 cases." in said
        assert "without a record of how: c, d" in said
        assert {name: (output / f"{name}.nii.gz").read_bytes() for name in "abcd"} == whole
        assert (output / "c.nii.gz").stat().st_mtime_ns == before

    def test_empty_label_maps_that_were_recorded_are_predicted_again(self, model, tmp_path, capsys):
        model.add("a", 1)
        output = predict(model, tmp_path / "out", fast_export=True)
        whole = (output / "a.nii.gz").read_bytes()
        (output / "a.nii.gz").write_bytes(b"")
        predict(model, output, fast_export=True, overwrite=False)
        assert "a is predicted again" in capsys.readouterr().out
        assert (output / "a.nii.gz").read_bytes() == whole

    def test_probabilities_that_are_missing_are_made(self, model, tmp_path, capsys):
        model.add("a", 1)
        predict(model, tmp_path / "out", spacing=KEEP)
        predict(model, tmp_path / "out", spacing=KEEP, overwrite=False, save_probabilities=True)
        assert (tmp_path / "out" / "a.npz").is_file()
        capsys.readouterr()
        predict(model, tmp_path / "out", spacing=KEEP, overwrite=False, save_probabilities=True)
        assert "That's 0 cases." in capsys.readouterr().out


class TestRecords:
    def report(self, folder, name="spacing_report"):
        return json.loads((folder / f"{name}.json").read_text())["cases"]

    @pytest.mark.parametrize("options", [{"fast_export": True}, {"spacing": KEEP}])
    def test_a_killed_run_has_a_record_for_every_label_map(self, model, tmp_path, monkeypatch, capsys, options):
        from nnunet_ext.inference.spacing_report import SpacingReport

        for name in "ab":
            model.add(name, 1)
        with monkeypatch.context() as patch:  # killed before it came to its report
            patch.setattr(SpacingReport, "add", lambda *_: None)
            predict(model, tmp_path / "out", **options)
        assert not (tmp_path / "out" / "spacing_report.json").exists()
        model.add("c", 1)
        capsys.readouterr()
        predict(model, tmp_path / "out", overwrite=False, **options)
        assert "without a record" not in capsys.readouterr().out
        cases = self.report(tmp_path / "out")
        assert sorted(cases) == ["a", "b", "c"]
        for record in cases.values():
            assert set(record["seconds"]) == {"reading", "preprocessing", "network", "resampling", "writing"}
            assert record.keys() == cases["c"].keys()
        assert not [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]

    def test_the_record_is_there_before_the_label_map(self, model, tmp_path, monkeypatch):
        moved = []
        original = os.replace
        monkeypatch.setattr(os, "replace", lambda a, b: moved.append(Path(b).name) or original(a, b))
        model.add("case", 1)
        predict(model, tmp_path / "out", fast_export=True)
        assert [name.startswith(".spacing_record_") for name in moved[-3:-1]] == [True, False]
        assert moved[-2:] == ["case.nii.gz", "spacing_report.json"]

    def test_a_part_leaves_the_records_of_the_others(self, model, tmp_path, monkeypatch, capsys):
        from nnunet_ext.inference.spacing_report import SpacingReport

        for name in "abcd":
            model.add(name, 1)

        def part(number, parts=2, overwrite=False):
            predictor = model.predictor(Predictor, fast_export=True, part=(number, parts))
            (tmp_path / "out").mkdir(exist_ok=True)
            call = (str(model.images), str(tmp_path / "out"))
            predictor.predict_from_files_sequential(*call, overwrite=overwrite)

        with monkeypatch.context() as patch:
            patch.setattr(SpacingReport, "add", lambda *_: None)
            part(1, overwrite=True)
        part(0, overwrite=True)
        part(0)
        assert sorted(self.report(tmp_path / "out", "spacing_report_part_0_of_2")) == ["a", "c"]
        part(1)
        assert sorted(self.report(tmp_path / "out", "spacing_report_part_1_of_2")) == ["b", "d"]
        capsys.readouterr()
        part(0, 1)  # all at once, after parts
        assert sorted(self.report(tmp_path / "out")) == ["a", "b", "c", "d"]
        assert "Kept as they are" not in capsys.readouterr().out

    def test_damaged_records_and_reports_are_as_if_they_were_not_there(self, model, tmp_path, capsys):
        model.add("a", 1)
        predict(model, tmp_path / "out", fast_export=True)
        for text in ("{", "[]", '{"cases": []}', '{"cases": {"a": 3}}', '{"cases": {"a": {"predicted_with": 3}}}'):
            (tmp_path / "out" / "spacing_report.json").write_text(text)
            (tmp_path / "out" / ".spacing_record_1.json").write_text(text)
            capsys.readouterr()
            predict(model, tmp_path / "out", fast_export=True, overwrite=False)
            assert "without a record of how: a" in capsys.readouterr().out


class TestInputs:
    def test_what_is_no_image_costs_no_other_case(self, model, tmp_path):
        images = model.images
        for name in ("a", "b", "c"):
            model.add(name, 1)
        (images / "no_channel.nii.gz").write_bytes(b"x")
        (images / "b_0000.nii.gz").unlink()
        (images / "b_0000.nii.gz").symlink_to(tmp_path / "nowhere.nii.gz")
        (images / "d_0000.nii.gz").mkdir()
        (images / "._a_0000.nii.gz").write_bytes(b"of macOS")
        (images / "._a.nii.gz").write_bytes(b"of macOS")
        (images / "notes.txt").write_text("mine")
        with pytest.raises(PredictionFailedError) as caught:
            predict(model, tmp_path / "out", fast_export=True)
        assert caught.value.failures == {
            "b": f"{images}/b_0000.nii.gz is a link that leads nowhere, expected an image; replace or remove it",
            "d": f"{images}/d_0000.nii.gz is a folder, expected an image; replace or remove it",
            "no_channel.nii.gz": f"{images}/no_channel.nii.gz has no channel number, expected CASE_0000.nii.gz; rename "
            "or remove it",
        }
        assert str(caught.value).startswith("3 of 5 case(s) failed; the others are done and kept.")
        assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["a.nii.gz", "c.nii.gz"]

    def test_nothing_but_what_is_no_image(self, model, tmp_path):
        (model.images / "a.nii.gz").write_bytes(b"x")
        with pytest.raises(PredictionFailedError, match="1 of 1 case"):
            predict(model, tmp_path / "out", fast_export=True)

    def test_each_part_names_what_is_wrong_with_its_own(self, model, tmp_path):
        for name in "abcd":
            (model.images / f"{name}.nii.gz").write_bytes(b"x")
        for part, names in ((0, ["a.nii.gz", "c.nii.gz"]), (1, ["b.nii.gz", "d.nii.gz"])):
            predictor = model.predictor(Predictor, fast_export=True, part=(part, 2))
            with pytest.raises(PredictionFailedError) as caught:
                predictor.predict_from_files_sequential(str(model.images), str(tmp_path / "out"))
            assert sorted(caught.value.failures) == names

    def test_a_folder_that_is_none(self, model, tmp_path):
        predictor = model.predictor(Predictor, fast_export=True)
        (tmp_path / "file").write_text("x")
        for name, text in (("nowhere", "is not there"), ("file", "is a file")):
            with pytest.raises(BadInputError, match=f"{name} {text}, expected a folder of images named CASE_0000"):
                predictor.predict_from_files_sequential(str(tmp_path / name), str(tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("found", "expected"), [(["0000"], 2), (["0000", "0001", "0002"], 2), (["0000", "0001"], 1)]
    )
    def test_another_number_of_channels_is_one_sentence(self, tmp_path, found, expected):
        model = make_model(tmp_path)
        content = json.loads((model.folder / "dataset.json").read_text())
        content["channel_names"] = {str(channel): f"c{channel}" for channel in range(expected)}
        for channel in reversed(found):
            model.add("case", 1).rename(model.images / f"case_{channel}.nii.gz")
        predictor = model.predictor(Predictor, fast_export=True)
        predictor.dataset_json = content
        with pytest.raises(PredictionFailedError) as caught:
            predictor.predict_from_files_sequential(str(model.images), str(tmp_path / "out"))
        there = ", ".join(f"case_{channel}.nii.gz" for channel in found)
        wanted = ", ".join(f"case_{channel:04d}.nii.gz" for channel in range(expected))
        assert caught.value.failures["case"].startswith(
            f"case has the channel file(s) {there}, expected {expected}: {wanted} (channel_names in dataset.json); add"
        )


class RunsCode:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


class TestTrust:
    def test_code_in_any_fold_is_not_run(self, model, tmp_path):
        file = model.folder / "fold_0" / "checkpoint_final.pth"
        content = torch.load(file, weights_only=False)
        (model.folder / "fold_1").mkdir()
        torch.save(content | {"logging": RunsCode(tmp_path / "ran")}, model.folder / "fold_1" / file.name)

        def start(**options):
            made = Predictor(device=torch.device("cpu"), allow_tqdm=False, **options)
            made.initialize_from_trained_model_folder(str(model.folder), (0, 1), file.name)
            return made

        for options in ({"fast_export": True}, {"spacing": ForcedSpacing()}):
            with pytest.raises(BadInputError, match=r"fold_1/checkpoint_final\.pth cannot be .* pass --trust_model$"):
                start(**options)
        assert not (tmp_path / "ran").exists()
        assert len(start(fast_export=True, trust_model=True).list_of_parameters) == 2
        assert (tmp_path / "ran").exists()

    def test_a_program_in_the_plans_is_not_started(self, model, tmp_path, monkeypatch):
        plans = json.loads((model.folder / "plans.json").read_text())
        kwargs = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
        kwargs |= {"nonlin": "subprocess.Popen", "nonlin_kwargs": {"args": ["touch", str(tmp_path / "ran")]}}
        (model.folder / "plans.json").write_text(json.dumps(plans))
        with pytest.raises(BadInputError, match=r"the plans name 'subprocess.Popen' as nonlin.* pass --trust_model$"):
            model.predictor(Predictor, fast_export=True)
        assert not (tmp_path / "ran").exists()

    def test_classes_of_a_trusted_model_may_be_the_users(self, model):
        plans = json.loads((model.folder / "plans.json").read_text())
        kwargs = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
        kwargs |= {"nonlin": f"{OwnActivation.__module__}.OwnActivation", "nonlin_kwargs": {}}
        (model.folder / "plans.json").write_text(json.dumps(plans))
        with pytest.raises(BadInputError, match="OwnActivation' as nonlin"):
            model.predictor(Predictor, fast_export=True)
        made = model.predictor(Predictor, fast_export=True, trust_model=True)
        assert any(type(module).__name__ == "OwnActivation" for module in made.network.modules())

    def test_damaged_files_are_one_sentence(self, model):
        (model.folder / "plans.json").write_text("{")
        with pytest.raises(BadInputError, match=r"plans.json is no JSON \(line 1, "):
            model.predictor(Predictor, fast_export=True)
        (model.folder / "fold_0" / "checkpoint_final.pth").write_bytes(b"PK no checkpoint")
        (model.folder / "plans.json").write_text(json.dumps({"configurations": {}}))
        with pytest.raises(BadInputError, match=r"checkpoint_final.pth cannot be loaded as a checkpoint"):
            model.predictor(Predictor, fast_export=True)


class OwnActivation(torch.nn.ReLU):
    """A layer that is none of torch's."""

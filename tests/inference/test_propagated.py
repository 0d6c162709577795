"""Prediction whose masks are carried by a propagation model."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from inference.tiny_model import REGIONS, make_model
from inference.tiny_propagation import carried_unchanged, make_propagation_model
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_ext.inference import Predictor, coarse_references
from nnunet_ext.inference.predictor import BadInputError
from nnunet_ext.inference.propagated import Finish, GivenSlices
from nnunet_ext.propagation.references import choose, sampled_slices

TURNED = {"transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0]}


def read(path: Path) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


def predict(model, output, kind=Predictor, save_probabilities=False, overwrite=True, **options):
    output.mkdir(exist_ok=True)
    predictor = model.predictor(kind, **options)
    predictor.predict_from_files_sequential(str(model.images), str(output), save_probabilities, overwrite)
    return output


def report(output):
    return json.loads((output / "spacing_report.json").read_text())["cases"]


@pytest.fixture
def unchanged(monkeypatch):
    monkeypatch.setattr("nnunet_ext.inference.propagated.propagate", carried_unchanged)


def bordered(path):
    """Write an image again with zeros around: two slices in front, one behind, and some in each slice."""
    image = SimpleITK.ReadImage(str(path))
    array = SimpleITK.GetArrayFromImage(image)
    array[:2], array[-1:], array[:, :3], array[:, :, -4:] = 0, 0, 0, 0
    written = SimpleITK.GetImageFromArray(array)
    written.CopyInformation(image)
    SimpleITK.WriteImage(written, str(path))


class TestOfA2DModel:
    @pytest.mark.parametrize("fast", [False, True])
    @pytest.mark.parametrize("plans", [{}, TURNED])
    def test_references_are_stocks_slices_and_only_sampled_slices_are_segmented(self, tmp_path, unchanged, plans, fast):
        """Cropped, resampled and turned: each slice of the result is stock's prediction of the nearest reference."""
        model = make_model(tmp_path, "2d", **plans)
        bordered(model.add("case", 1, (3.0, 1.0, 0.9)))
        carrier = make_propagation_model(tmp_path / "other", **plans)
        stock = read(predict(model, tmp_path / "stock", nnUNetPredictor) / "case.nii.gz")
        output = predict(model, tmp_path / "out", propagate=carrier, propagate_references="uniform", fast_export=fast)
        found = read(output / "case.nii.gz")
        axis = plans.get("transpose_forward", [0])[0]
        first, total = (2, 17) if axis == 0 else (0, 26)
        sampled = [first + index for index in sampled_slices(total)]
        record = report(output)["case"]
        assert record["propagation"]["references"] == [index + 1 for index in sampled]
        assert record["propagation"]["slices"] == len(sampled)
        assert record["propagation"]["seconds"] > 0
        assert record["patches"] == len(sampled) * (8 if axis else 2)
        along, expected = np.moveaxis(found, axis, 0), np.moveaxis(stock, axis, 0)
        np.testing.assert_array_equal(along[sampled], expected[sampled])
        between = [index for index in range(first, first + total) if index not in sampled]
        same = [
            np.mean(along[index] == expected[min(sampled, key=lambda one, at=index: abs(one - at))])
            for index in between
        ]
        assert min(same) > 0.85  # labels are resampled to the network's grid and back, so that edges move

    def test_the_largest_slice_of_each_class(self, tmp_path, unchanged):
        model = make_model(tmp_path, "2d")
        model.add("case", 1)
        carrier = make_propagation_model(tmp_path / "other")
        stock = read(predict(model, tmp_path / "stock", nnUNetPredictor) / "case.nii.gz")
        sampled = sampled_slices(20)
        for how in ("largest", 2, "uniform"):
            output = predict(model, tmp_path / f"{how}", propagate=carrier, propagate_references=how)
            expected = choose(stock[sampled], sampled, how)
            record = report(output)["case"]
            assert record["propagation"]["references"] == [index + 1 for index in expected]
            assert record["predicted_with"]["propagate"].endswith(f", references {how}")
            np.testing.assert_array_equal(read(output / "case.nii.gz")[expected], stock[expected])

    def test_with_a_network(self, tmp_path):
        """No stand-in: the network that the plans name, two folds of it, and geometry that is flipped."""
        model = make_model(tmp_path, "2d")
        path = model.add("case", 1, direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1), origin=(10, 20, -30))
        carrier = make_propagation_model(tmp_path / "other", folds=(0, 1))
        output = predict(model, tmp_path / "out", propagate=carrier)
        written, image = SimpleITK.ReadImage(str(output / "case.nii.gz")), SimpleITK.ReadImage(str(path))
        for name in ("Size", "Spacing", "Origin", "Direction"):
            assert getattr(written, f"Get{name}")() == pytest.approx(getattr(image, f"Get{name}")())
        text = report(output)["case"]["predicted_with"]["propagate"]
        assert text.startswith("nnUNetTrainerPropagation__nnUNetPlans__2d: fold 0 ")
        assert ", fold 1 " in text
        again = predict(model, tmp_path / "one", propagate=carrier / "fold_1")
        assert "fold 0" not in report(again)["case"]["predicted_with"]["propagate"]

    def test_other_spacings_and_networks_of_the_plans(self, tmp_path, unchanged):
        """Where the propagation model prepares images otherwise, they are prepared twice and read once."""
        model = make_model(tmp_path, "2d")
        model.add("case", 1)
        same = make_propagation_model(tmp_path / "same")
        other = make_propagation_model(tmp_path / "other", change={"spacing": [0.9, 0.8]})
        first = read(predict(model, tmp_path / "a", propagate=same, propagate_references="uniform") / "case.nii.gz")
        second = read(predict(model, tmp_path / "b", propagate=other, propagate_references="uniform") / "case.nii.gz")
        sampled = sampled_slices(20)
        np.testing.assert_array_equal(first[sampled], second[sampled])
        assert np.mean(first == second) > 0.85

    def test_probabilities(self, tmp_path, unchanged):
        model = make_model(tmp_path, "2d")
        model.add("case", 1)
        carrier = make_propagation_model(tmp_path / "other")
        output = predict(model, tmp_path / "out", save_probabilities=True, propagate=carrier)
        plain = predict(model, tmp_path / "plain", propagate=carrier)
        probabilities = np.load(output / "case.npz")["probabilities"]
        assert probabilities.shape == (4, 20, 26, 30)
        np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-2)
        np.testing.assert_array_equal(read(output / "case.nii.gz"), read(plain / "case.nii.gz"))

    def test_an_empty_prediction_is_returned_and_said(self, tmp_path, capsys):
        model = make_model(tmp_path, "2d")
        model.add("case", 1)
        file = model.folder / "fold_0" / "checkpoint_final.pth"
        content = torch.load(file, weights_only=False)
        bias = next(value for key, value in content["network_weights"].items() if key.endswith("seg_layers.0.bias"))
        bias[0] += 1e3
        torch.save(content, file)
        output = predict(model, tmp_path / "out", propagate=make_propagation_model(tmp_path / "other"))
        assert not read(output / "case.nii.gz").any()
        record = report(output)["case"]["propagation"]
        assert record["references"] == []
        assert "finds no class in the slices" in record["reason"]
        assert "case: the model finds no class in the slices that it was asked for" in capsys.readouterr().out

    def test_classes_that_vanish_on_the_grid_of_the_propagation_model(self, tmp_path, monkeypatch, capsys):
        """As of objects smaller than its voxels: the segmented slices are written, and it is said."""
        original = coarse_references.to_grid
        monkeypatch.setattr(
            coarse_references, "to_grid", lambda *a: {index: 0 * labels for index, labels in original(*a).items()}
        )
        carrier = make_propagation_model(tmp_path / "other")
        sampled = sampled_slices(20)
        for dimensions, expected in (("2d", sampled), ("3d_fullres", list(range(20)))):
            model = make_model(tmp_path / dimensions, dimensions)
            model.add("case", 1)
            stock = read(predict(model, tmp_path / dimensions / "stock", nnUNetPredictor) / "case.nii.gz")
            output = predict(model, tmp_path / dimensions / "out", propagate=carrier)
            found = read(output / "case.nii.gz")
            np.testing.assert_array_equal(found[expected], stock[expected])
            assert not np.delete(found, expected, 0).any()
            record = report(output)["case"]["propagation"]
            assert record["references"] == []
            assert "smaller than a voxel" in record["reason"]
            assert "case: what the model finds is smaller than a voxel" in capsys.readouterr().out

    @pytest.mark.parametrize("slices", [1, 3])
    def test_few_slices(self, tmp_path, slices):
        model = make_model(tmp_path, "2d")
        model.add("case", 1, shape=(slices, 26, 30))
        stock = read(predict(model, tmp_path / "stock", nnUNetPredictor) / "case.nii.gz")
        carrier = make_propagation_model(tmp_path / "other")
        output = predict(model, tmp_path / "out", propagate=carrier, propagate_references="uniform")
        np.testing.assert_array_equal(read(output / "case.nii.gz"), stock)

    def test_regions(self, tmp_path, unchanged):
        model = make_model(tmp_path, "2d", REGIONS)
        model.add("case", 1)
        carrier = make_propagation_model(tmp_path / "other", REGIONS)
        stock = read(predict(model, tmp_path / "stock", nnUNetPredictor) / "case.nii.gz")
        output = predict(model, tmp_path / "out", propagate=carrier, propagate_references="uniform")
        found, sampled = read(output / "case.nii.gz"), sampled_slices(20)
        assert set(np.unique(found)) == set(np.unique(stock[sampled])) == {0, 1, 2, 3}
        np.testing.assert_array_equal(found[sampled], stock[sampled])
        with pytest.raises(BadInputError, match="--save_probabilities does not go with --propagate where the dataset"):
            predict(model, tmp_path / "none", save_probabilities=True, propagate=carrier)
        assert not list((tmp_path / "none").iterdir())

    def test_arrays(self, tmp_path, unchanged):
        model = make_model(tmp_path, "2d")
        path = model.add("case", 1)
        carrier = make_propagation_model(tmp_path / "other")
        expected = read(predict(model, tmp_path / "out", propagate=carrier) / "case.nii.gz")
        predictor = model.predictor(Predictor, propagate=carrier)
        image, properties = read(path)[None], {"spacing": [3.0, 1.0, 1.0]}
        np.testing.assert_array_equal(predictor.predict_single_npy_array(image, dict(properties)), expected)
        (found,) = predictor.predict_from_list_of_npy_arrays([image], None, [dict(properties)], None, 0, False, 0)
        np.testing.assert_array_equal(found, expected)


class TestOfA3DModel:
    @pytest.mark.parametrize("plans", [{}, TURNED])
    def test_sampled_slices_are_taken_out_of_everything(self, tmp_path, unchanged, plans):
        model = make_model(tmp_path)
        bordered(model.add("case", 1))
        carrier = make_propagation_model(tmp_path / "other", **plans)
        stock = read(predict(model, tmp_path / "stock", nnUNetPredictor) / "case.nii.gz")
        output = predict(model, tmp_path / "out", propagate=carrier, propagate_references="uniform")
        axis = plans.get("transpose_forward", [0])[0]
        first, total = (2, 17) if axis == 0 else (0, 26)
        sampled = [first + index for index in sampled_slices(total)]
        along, expected = (np.moveaxis(array, axis, 0) for array in (read(output / "case.nii.gz"), stock))
        np.testing.assert_array_equal(along[sampled], expected[sampled])
        record = report(output)["case"]["propagation"]
        assert record["slices"] == total
        assert record["references"] == [index + 1 for index in sampled]

    def test_a_2d_model_of_another_axis_segments_everything(self, tmp_path, unchanged):
        model = make_model(tmp_path, "2d")
        model.add("case", 1)
        carrier = make_propagation_model(tmp_path / "other", **TURNED)
        stock = read(predict(model, tmp_path / "stock", nnUNetPredictor) / "case.nii.gz")
        output = predict(model, tmp_path / "out", propagate=carrier, propagate_references="uniform")
        sampled = sampled_slices(30)
        np.testing.assert_array_equal(read(output / "case.nii.gz")[:, :, sampled], stock[:, :, sampled])
        assert report(output)["case"]["propagation"]["slices"] == 30

    def test_an_empty_prediction_elsewhere_stays(self, tmp_path, monkeypatch):
        """Nothing in the sampled slices, but something between them: the prediction is returned as it is."""
        monkeypatch.setattr("nnunet_ext.inference.coarse_references.choose", lambda *a: [])
        model = make_model(tmp_path)
        model.add("case", 1)
        stock = read(predict(model, tmp_path / "stock", nnUNetPredictor) / "case.nii.gz")
        output = predict(model, tmp_path / "out", propagate=make_propagation_model(tmp_path / "other"))
        np.testing.assert_array_equal(read(output / "case.nii.gz"), stock)


def test_the_previous_stage_of_a_cascade_is_no_channel_of_the_propagation(tmp_path):
    """Both models prepare the image alike, but the label map of the stage before is only for the one that segments."""
    model = make_model(tmp_path, "2d", change={"previous_stage": "3d_fullres"})
    previous = model.add("case", 1).rename(tmp_path / "case.nii.gz")
    model.add("case", 1)
    image = SimpleITK.ReadImage(str(previous))
    SimpleITK.WriteImage(SimpleITK.Cast(image > 100, SimpleITK.sitkUInt8), str(previous))
    predictor = model.predictor(Predictor, propagate=make_propagation_model(tmp_path / "other"))
    (tmp_path / "out").mkdir()
    predictor.predict_from_files_sequential(str(model.images), str(tmp_path / "out"), False, True, str(tmp_path))
    assert report(tmp_path / "out")["case"]["propagation"]["references"]


class TestRuns:
    def test_one_bad_case_costs_no_other_and_what_is_done_is_kept(self, tmp_path, capsys, monkeypatch):
        model = make_model(tmp_path, "2d")
        for name in ("a", "b", "c"):
            model.add(name, ord(name))
        carrier = make_propagation_model(tmp_path / "other")
        original = carried_unchanged
        calls = []

        def fails_once(networks, image, *arguments, **keywords):
            calls.append(1)
            if len(calls) == 2:
                raise RuntimeError("something of the second case")
            return original(networks, image, *arguments, **keywords)

        monkeypatch.setattr("nnunet_ext.inference.propagated.propagate", fails_once)
        with pytest.raises(RuntimeError, match=r"1 of 3 case\(s\) failed; the others are done and kept"):
            predict(model, tmp_path / "out", propagate=carrier)
        assert sorted(report(tmp_path / "out")) == ["a", "c"]
        times = {name: (tmp_path / "out" / f"{name}.nii.gz").stat().st_mtime_ns for name in ("a", "c")}
        capsys.readouterr()
        predict(model, tmp_path / "out", overwrite=False, propagate=carrier)
        assert sorted(report(tmp_path / "out")) == ["a", "b", "c"]
        assert "Kept as they are" not in capsys.readouterr().out
        assert len(calls) == 4
        predict(model, tmp_path / "out", overwrite=False, fast_export=True)
        text = capsys.readouterr().out
        assert "Kept as they are, though predicted with " in text
        assert "propagate nnUNetTrainerPropagation__nnUNetPlans__2d: fold 0 " in text
        assert {name: (tmp_path / "out" / f"{name}.nii.gz").stat().st_mtime_ns for name in times} == times

    def test_agreement_is_that_of_the_networks_that_segment(self, tmp_path, unchanged):
        model = make_model(tmp_path, "2d")
        model.add("case", 1)
        content = torch.load(model.folder / "fold_0" / "checkpoint_final.pth", weights_only=False)
        for key in content["network_weights"]:
            content["network_weights"][key] = content["network_weights"][key] * 1.1
        (model.folder / "fold_1").mkdir()
        torch.save(content, model.folder / "fold_1" / "checkpoint_final.pth")
        carrier = make_propagation_model(tmp_path / "other")
        predictor = Predictor(
            device=torch.device("cpu"), allow_tqdm=False, use_mirroring=False, agreement=True, propagate=carrier
        )
        predictor.initialize_from_trained_model_folder(str(model.folder), (0, 1), "checkpoint_final.pth")
        (tmp_path / "out").mkdir()
        predictor.predict_from_files_sequential(str(model.images), str(tmp_path / "out"))
        record = report(tmp_path / "out")["case"]
        assert 0 < record["agreement"]["score"] <= 1
        assert record["propagation"]["references"]


def test_labels_of_single_voxels_do_not_wrap_around():
    given = GivenSlices(0, (), np.zeros((0, 2, 2), np.int16))
    finish = Finish((0, 1), given, (np.array([3]), np.array([300], np.int16)))
    np.testing.assert_array_equal(finish(np.array([[[0, 1], [1, 0]]])), [[[0, 1], [1, 300]]])


class TestRefused:
    @pytest.fixture
    def model(self, tmp_path):
        model = make_model(tmp_path, "2d")
        model.add("case", 1)
        return model

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            (
                {"labels": {"background": 0, "liver": 1}},
                r"--propagate .* has the classes .*'liver': 1.*, but the model",
            ),
            ({"labels": REGIONS}, "--propagate .* has the classes"),
            ({"channels": 2}, "--propagate .* has this number of channels: 2, but the model of the prediction 1"),
            (
                {"file_ending": ".nrrd"},
                "--propagate .* has files ending in .nrrd, but the model of the prediction .nii",
            ),
            ({"image_reader_writer": "NibabelIO"}, "--propagate .* has images read by NibabelIO, but the model"),
            (
                {"configuration": "3d_fullres", "network": "other"},
                "--propagate .* is of the configuration 3d_fullres .*, which is 3d; masks are carried from slice to",
            ),
            ({"network": "other"}, "--propagate .* is no propagation model: nnUNetTrainer has trained a PlainConvUNet"),
        ],
    )
    def test_models_that_do_not_fit(self, model, tmp_path, other, message):
        carrier = make_propagation_model(tmp_path / "other", **other)
        with pytest.raises(BadInputError, match=message):
            predict(model, tmp_path / "out", propagate=carrier)
        assert not list((tmp_path / "out").iterdir())

    def test_an_ignore_label_of_one_of_both_is_fine(self, model, tmp_path, unchanged):
        labels = {"background": 0, "one": 1, "two": 2, "three": 3, "ignore": 4}
        predict(model, tmp_path / "out", propagate=make_propagation_model(tmp_path / "other", labels))
        assert (tmp_path / "out" / "case.nii.gz").is_file()

    def test_folders_that_are_none(self, model, tmp_path):
        with pytest.raises(BadInputError, match="--propagate: there is no model folder .*nowhere"):
            predict(model, tmp_path / "out", propagate=tmp_path / "nowhere")
        carrier = make_propagation_model(tmp_path / "other")
        (carrier / "fold_0" / "checkpoint_final.pth").unlink()
        with pytest.raises(
            BadInputError, match=r"--propagate: no fold of .* has checkpoint_final.pth; finish its training$"
        ):
            predict(model, tmp_path / "out", propagate=carrier)

    def test_a_propagation_model_segments_nothing(self, tmp_path, model):
        carrier = make_propagation_model(tmp_path / "other")
        predictor = Predictor(device=torch.device("cpu"), allow_tqdm=False, propagate=carrier)
        predictor.initialize_from_trained_model_folder(str(carrier), (0,), "checkpoint_final.pth")
        with pytest.raises(BadInputError, match="the model of the prediction is a propagation model, which segments"):
            predictor.predict_from_files_sequential(str(model.images), str(tmp_path / "out"))

    def test_another_model_that_the_predictor_is_given_later(self, model, tmp_path, unchanged):
        carrier = make_propagation_model(tmp_path / "other")
        predictor = model.predictor(Predictor, propagate=carrier)
        (tmp_path / "out").mkdir()
        predictor.predict_from_files_sequential(str(model.images), str(tmp_path / "out"))
        later = make_model(tmp_path / "later", "2d", REGIONS)
        predictor.initialize_from_trained_model_folder(str(later.folder), (0,), "checkpoint_final.pth")
        with pytest.raises(BadInputError, match="--propagate .* has the classes"):
            predictor.predict_from_files_sequential(str(model.images), str(tmp_path / "out"))

    def test_weights_of_another_network(self, model, tmp_path):
        carrier = make_propagation_model(tmp_path / "other")
        file = carrier / "fold_0" / "checkpoint_final.pth"
        content = torch.load(file, weights_only=False)
        del content["network_weights"]["key_projection.bias"]
        torch.save(content, file)
        with pytest.raises(BadInputError, match=r"lacks key_projection.bias: its network_weights are not those of the"):
            predict(model, tmp_path / "out", propagate=carrier)
        assert not list((tmp_path / "out").iterdir())

    def test_code_in_a_checkpoint(self, model, tmp_path):
        carrier = make_propagation_model(tmp_path / "other")
        file = carrier / "fold_0" / "checkpoint_final.pth"
        torch.save(torch.load(file, weights_only=False) | {"more": Predictor}, file)
        with pytest.raises(BadInputError, match="pass --trust_model"):
            predict(model, tmp_path / "out", propagate=carrier)

    @pytest.mark.parametrize("how", ["smallest", 0, True, -1])
    def test_a_choice_that_there_is_not(self, how):
        with pytest.raises(ValueError, match="propagate_references must be largest, uniform or a positive number, got"):
            Predictor(device=torch.device("cpu"), propagate="x", propagate_references=how)

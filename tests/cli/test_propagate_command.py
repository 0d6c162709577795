"""``nnUNetv2_ext propagate`` on label maps written by hand."""

import json

import numpy as np
import pytest
import SimpleITK
from data.tiny_dataset import write_image
from inference.tiny_model import REGIONS, smooth_image
from inference.tiny_propagation import carried_unchanged, make_propagation_model

from nnunet_ext.cli.main import main

SHAPE, SPACING = (20, 26, 30), (3.0, 1.0, 0.9)
LABELS = {"background": 0, "one": 1, "two": 2, "three": 3, "ignore": 4}
IGNORE = 4
FLIPPED = {"direction": (-1, 0, 0, 0, -1, 0, 0, 0, 1), "origin": (10, 20, -30)}
SIDEWAYS = {"direction": (0, 0, 1, 1, 0, 0, 0, 1, 0)}


def read(path):
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


def objects(shape=SHAPE, axis=0):
    """Return a label map in which each class is in each slice along an axis, at the same place."""
    labels = np.zeros(shape, np.uint8)
    for label in (1, 2, 3):
        np.moveaxis(labels, axis, 0)[:, 5 * label - 3 : 5 * label + 3, 4 * label : 4 * label + 9] = label
    return labels


def sparse(axis=0, slices=(4, 12), rest=IGNORE, shape=SHAPE):
    """Return a label map of which some slices are annotated, and these slices."""
    labels = np.full(shape, rest, np.uint8)
    given = objects(shape, axis)
    place = [slice(None)] * 3
    place[axis] = list(slices)
    labels[tuple(place)] = given[tuple(place)]
    return labels


class Bench:
    """Folders of images and sparse labels, and the command on them."""

    def __init__(self, root, **model):
        self.root, self.images, self.labels, self.output = (root, *(root / n for n in ("images", "labels", "out")))
        self.model = make_propagation_model(root / "models", **{"labels": LABELS, **model})
        self.ending = model.get("file_ending", ".nii.gz")

    def add(self, name="case", labels=None, spacing=SPACING, label_spacing=None, label_geometry=None, **geometry):
        labels = sparse() if labels is None else labels
        image = smooth_image(len(name), geometry.pop("shape", labels.shape))
        write_image(self.images / f"{name}_0000{self.ending}", image, spacing, **geometry)
        geometry = geometry if label_geometry is None else label_geometry
        return write_image(self.labels / f"{name}{self.ending}", labels, label_spacing or spacing, **geometry)

    def run(self, *more, status=0):
        fixed = ["propagate", "-m", self.model, "-i", self.images, "-l", self.labels, "-o", self.output]
        fixed += ["-device", "cpu", "--no_pbar", "-npp", 0, "-nps", 0]
        assert main([str(word) for word in (*fixed, *more)]) == status

    def result(self, name="case"):
        return read(self.output / f"{name}{self.ending}")

    def record(self, name="case"):
        return json.loads((self.output / "propagation_report.json").read_text())["cases"][name]["propagation"]


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


@pytest.fixture
def unchanged(monkeypatch):
    monkeypatch.setattr("nnunet_ext.inference.propagated.propagate", carried_unchanged)


class TestResults:
    @pytest.mark.parametrize("geometry", [{}, FLIPPED, SIDEWAYS], ids=["tilted", "flipped", "sideways"])
    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_slices_along_any_axis_that_is_the_models(self, tmp_path, unchanged, geometry, axis):
        order = [axis, *(a for a in (2, 0, 1) if a != axis)]
        plans = {"transpose_forward": order, "transpose_backward": np.argsort(order).tolist()}
        bench = Bench(tmp_path, **plans)
        given = sparse(axis)
        file = bench.add(labels=given, **geometry)
        bench.run()
        found = bench.result()
        known = given != IGNORE
        np.testing.assert_array_equal(found[known], given[known])  # voxel for voxel
        assert (
            np.mean(found == objects(axis=axis)) > 0.96
        )  # the objects are the same in each slice; resampling moves edges
        assert found.dtype == np.uint8
        written, label = SimpleITK.ReadImage(str(bench.output / "case.nii.gz")), SimpleITK.ReadImage(str(file))
        for name in ("Size", "Spacing", "Origin", "Direction"):
            assert getattr(written, f"Get{name}")() == pytest.approx(getattr(label, f"Get{name}")())
        assert bench.record()["references"] == [5, 13]

    def test_with_a_network(self, bench):
        bench.add()
        bench.run("--suggest", 3, "--figure")
        given = sparse()
        np.testing.assert_array_equal(bench.result()[[4, 12]], given[[4, 12]])
        assert set(np.unique(bench.result())) <= {0, 1, 2, 3}
        assert (bench.output / "case.png").read_bytes()[:4] == b"\x89PNG"
        record = bench.record()
        assert record["missing_classes"] == {}
        assert record["slices"] == 20
        assert record["seconds"] > 0

    def test_named_slices(self, tmp_path, unchanged, capsys):
        bench = Bench(tmp_path, labels={name: label for name, label in LABELS.items() if name != "ignore"})
        bench.add(labels=sparse(rest=0))
        bench.run("--slices", 13, 5, 13)
        np.testing.assert_array_equal(bench.result()[[4, 12]], objects()[[4, 12]])
        assert bench.record()["references"] == [5, 13]
        assert np.mean(bench.result() == objects()) > 0.96
        bench.run("--slices", 5, "--overwrite")  # of the annotated slices one is named
        assert bench.record()["references"] == [5]

    def test_a_partly_annotated_slice_is_kept_but_is_no_reference(self, bench, unchanged, capsys):
        labels = sparse()
        labels[8, 3:10, 4:9] = 3
        bench.add(labels=labels)
        bench.run()
        found = bench.result()
        known = labels != IGNORE
        np.testing.assert_array_equal(found[known], labels[known])
        assert bench.record()["references"] == [5, 13]
        assert IGNORE not in found
        assert "case: slice(s) 9 are annotated in part: what is annotated of them is kept" in capsys.readouterr().out

    def test_regions(self, tmp_path, unchanged):
        bench = Bench(tmp_path, labels=REGIONS | {"ignore": 4})
        bench.add()
        bench.run()
        np.testing.assert_array_equal(bench.result()[[4, 12]], objects()[[4, 12]])
        assert set(np.unique(bench.result())) == {0, 1, 2, 3}

    def test_one_slice_comes_back_as_it_is(self, bench):
        bench.add(labels=objects((1, 26, 30)))
        bench.run()
        np.testing.assert_array_equal(bench.result(), objects((1, 26, 30)))

    def test_every_slice_annotated(self, bench, capsys):
        bench.add(labels=objects())
        bench.run("--suggest", 2)
        np.testing.assert_array_equal(bench.result(), objects())
        said = capsys.readouterr().out
        assert "every slice is annotated, so that there is nothing to find" in said
        assert "case: no slice is left" in said

    def test_a_slice_outside_of_the_body_is_kept(self, bench, unchanged, capsys):
        labels = sparse(slices=(0, 12))
        bench.add(labels=labels)
        image = SimpleITK.ReadImage(str(bench.images / "case_0000.nii.gz"))
        array = SimpleITK.GetArrayFromImage(image)
        array[:3], array[:, :4] = 0, 0
        cut = SimpleITK.GetImageFromArray(array)
        cut.CopyInformation(image)
        SimpleITK.WriteImage(cut, str(bench.images / "case_0000.nii.gz"))
        bench.run()
        np.testing.assert_array_equal(bench.result()[[0, 12]], labels[[0, 12]])
        assert not bench.result()[1].any()
        assert "case: the image is 0 in slice(s) 1; nothing is carried from there" in capsys.readouterr().out

    def test_a_class_that_no_slice_has(self, bench, unchanged, capsys):
        labels = sparse()
        labels[labels == 2] = 0
        bench.add(labels=labels)
        bench.run()
        assert (
            "Warning: case: no annotated slice has the class 2 (two), which cannot be found" in capsys.readouterr().out
        )
        assert bench.record()["missing_classes"] == {"2": "two"}

    def test_one_image_with_its_channels(self, tmp_path, unchanged):
        bench = Bench(tmp_path, channels=2)
        bench.add()
        write_image(bench.images / "case_0001.nii.gz", smooth_image(8, SHAPE), SPACING)
        bench.run("-i", bench.images / "case_0000.nii.gz", "-l", bench.labels / "case.nii.gz")
        assert np.mean(bench.result() == objects()) > 0.96

    def test_files_are_called_as_the_case_whatever_the_label_map_is_called(self, bench, unchanged, capsys):
        drawn = bench.add().rename(bench.root / "drawn.nii.gz")
        bench.run("-i", bench.images / "case_0000.nii.gz", "-l", drawn, "--figure")
        assert {file.name for file in bench.output.iterdir()} == {"case.nii.gz", "case.png", "propagation_report.json"}

    def test_a_named_slice_that_is_not_annotated_is_said(self, bench, unchanged, capsys):
        bench.add()
        bench.run("--slices", 5, 8, 13)
        assert "case: slice(s) 8 are named, but have the ignore label throughout" in capsys.readouterr().out
        assert bench.record()["references"] == [5, 13]

    def test_other_file_formats(self, tmp_path, unchanged):
        bench = Bench(tmp_path, file_ending=".nrrd")
        bench.add()
        bench.run("-npp", 1, "-nps", 1)
        np.testing.assert_array_equal(bench.result()[[4, 12]], objects()[[4, 12]])


class TestSuggestions:
    def test_they_are_printed_and_written_in_the_numbers_of_the_file(self, bench, unchanged, capsys):
        bench.add()
        bench.run("--suggest", 2)  # of the stand-in for the driver low slices agree least
        said = capsys.readouterr().out
        assert "  case: slice 1 (agreement 0.000), 6 (agreement 0.250)\n" in said
        written = json.loads((bench.output / "suggestions.json").read_text())
        assert written == {"case": [{"slice": 1, "agreement": 0.0}, {"slice": 6, "agreement": 0.25}]}

    def test_readers_that_turn_images_count_as_the_file_does(self, tmp_path, unchanged, capsys):
        bench = Bench(tmp_path, image_reader_writer="NibabelIOWithReorient")
        upside_down = (1, 0, 0, 0, 1, 0, 0, 0, -1)
        bench.add(direction=upside_down)
        bench.run("--suggest", 1)
        assert bench.record()["references"] == [5, 13]
        np.testing.assert_array_equal(bench.result()[[4, 12]], objects()[[4, 12]])
        assert "  case: slice 20 (agreement 0.000)\n" in capsys.readouterr().out  # the first of the array


class TestAgain:
    def test_what_is_done_is_kept(self, bench, unchanged, capsys):
        for name in ("a", "bb"):
            bench.add(name)
        bench.run()
        times = {name: (bench.output / f"{name}.nii.gz").stat().st_mtime_ns for name in ("a", "bb")}
        (bench.output / "bb.nii.gz").unlink()
        write_image(bench.labels / "a.nii.gz", sparse(slices=(2,)), SPACING)
        capsys.readouterr()
        bench.run("--suggest", 1)
        said = capsys.readouterr().out
        assert "1 case(s) are done already and kept; --overwrite makes them again." in said
        assert "Kept, though their label maps were changed since (--overwrite): a" in said
        assert (bench.output / "a.nii.gz").stat().st_mtime_ns == times["a"]
        assert (bench.output / "bb.nii.gz").is_file()
        assert set(json.loads((bench.output / "suggestions.json").read_text())) == {"a", "bb"}
        bench.run("--weighting", "distance")
        assert "Kept as they are, though predicted with weighting mean: a, bb" in capsys.readouterr().out
        bench.run("--overwrite")
        assert bench.record("a")["references"] == [3]

    def test_what_is_not_made_again_is_said(self, bench, unchanged, capsys):
        bench.add("a")
        bench.run("--suggest", 1)
        assert "1 label map(s) are in" in capsys.readouterr().out
        bench.run("--suggest", 2, "--figure")
        said = capsys.readouterr().out
        assert "  a: slice 1 (agreement 0.000); more with --overwrite\n" in said
        bench.run("--suggest", 2, "--figure", "--overwrite")
        said = capsys.readouterr().out
        assert "more with" not in said

    def test_a_picture_of_what_was_done_before_is_not_drawn_which_is_said(self, bench, unchanged, capsys):
        bench.add()
        bench.run()
        bench.run("--figure")
        assert "No picture of case, done before or not drawn; --overwrite" in capsys.readouterr().out

    def test_a_picture_that_cannot_be_drawn_costs_no_result(self, bench, unchanged, capsys, monkeypatch):
        def fails(*_):
            raise RuntimeError("no fonts")

        monkeypatch.setattr("nnunet_ext.figures.propagation.save_figure", fails)
        bench.add()
        bench.run("--figure")
        assert "case.png could not be drawn: no fonts" in capsys.readouterr().out
        assert (bench.output / "case.nii.gz").is_file()

    def test_images_without_labels_are_left_out(self, bench, unchanged, capsys):
        bench.add("a")
        bench.add("bb")
        (bench.labels / "bb.nii.gz").unlink()
        bench.run()
        assert "Left out, as they have no label map in" in capsys.readouterr().out
        assert not (bench.output / "bb.nii.gz").exists()


def refused(bench, capsys, message, *more):
    """Check that the only case is refused, in a sentence, and nothing is written for it."""
    bench.run(*more, status=1)
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not list(bench.output.glob("case*"))


class TestRefused:
    @pytest.mark.parametrize(
        ("axis", "name", "slices"), [(1, "y (front-back)", "5, 13"), (2, "x (left-right)", "5, 13")]
    )
    def test_slices_along_another_axis(self, bench, capsys, axis, name, slices):
        bench.add(labels=sparse(axis))
        message = f"is annotated in the slices {slices} along the axis {name}, but the model carries masks along z"
        refused(bench, capsys, f"{message} (head-foot), in whose slices it was trained; annotate slices along z")

    def test_named_slices_along_another_axis(self, tmp_path, capsys):
        bench = Bench(tmp_path, labels={"background": 0, "one": 1, "two": 2, "three": 3})
        bench.add(labels=sparse(1, rest=0))
        refused(bench, capsys, "in the slices 5, 13 along the axis y", "--slices", 5, 13)

    def test_named_slices_along_another_axis_that_the_reader_turns(self, tmp_path, capsys):
        """Slices are numbered from the other end along that axis, but not along the model's."""
        labels = {"background": 0, "one": 1, "two": 2, "three": 3}
        bench = Bench(tmp_path, labels=labels, image_reader_writer="NibabelIOWithReorient")
        bench.add(labels=sparse(1, rest=0))
        refused(bench, capsys, "in the slices 5, 13 along the axis y", "--slices", 5, 13)

    @pytest.mark.parametrize("reader", ["NibabelIO", "NibabelIOWithReorient", "SimpleITKIOWithReorient"])
    def test_another_place_in_the_patient_with_each_reader(self, tmp_path, capsys, reader):
        bench = Bench(tmp_path, image_reader_writer=reader)
        bench.add(label_geometry={"origin": (0, 0, 6)})
        refused(bench, capsys, "they must lie on the same grid: save the label map with the image's header")

    def test_label_maps_are_not_overwritten(self, bench, unchanged, capsys):
        file = bench.add()
        content = file.read_bytes()
        for more in ((), ("-l", file, "-i", bench.images / "case_0000.nii.gz")):
            bench.run(*more, "-o", bench.labels, "--overwrite", status=1)
            assert "would take the place of the annotated slices; name another folder" in capsys.readouterr().err
        assert file.read_bytes() == content
        assert [one.name for one in bench.labels.iterdir()] == ["case.nii.gz"]

    def test_annotated_where_the_image_is_0(self, bench, capsys):
        bench.add(labels=sparse(slices=(0,)))
        image = SimpleITK.ReadImage(str(bench.images / "case_0000.nii.gz"))
        image[:, :, 0] = 0
        SimpleITK.WriteImage(image, str(bench.images / "case_0000.nii.gz"))
        refused(bench, capsys, "case.nii.gz: no class of its annotated slices is left on the grid of the model")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"labels": sparse(shape=(20, 26, 28)), "shape": SHAPE}, "has shape (20, 26, 28), but"),
            ({"label_spacing": (2.5, 1.0, 0.9)}, "has the spacing 2.5 1 0.9 mm (slices first), but"),
            ({"label_geometry": FLIPPED}, "point otherwise than those of"),
            ({"label_geometry": {"origin": (0, 0, 6)}}, "has its origin at 0 0 6 mm, but"),
            (
                {"labels": np.full(SHAPE, IGNORE, np.uint8)},
                "of which each voxel is annotated; the voxels with the ignore",
            ),
            ({"labels": np.where(objects() == 3, 7, sparse())}, "has the label(s) 7, which the model does not have"),
            ({"labels": np.minimum(sparse(), 0) + IGNORE * (sparse() == IGNORE)}, "annotated slice(s) has a class, so"),
            ({"labels": sparse().astype(np.float32) + 0.5}, "has values that are no labels"),
        ],
    )
    def test_label_maps(self, bench, capsys, changes, message):
        if "labels" in changes and changes["labels"].dtype == np.int64:
            changes["labels"] = changes["labels"].astype(np.uint8)
        if "7" in message:
            changes["labels"][changes["labels"] == 7] = np.where(sparse()[changes["labels"] == 7] == IGNORE, IGNORE, 7)
        bench.add(**changes)
        refused(bench, capsys, message)

    def test_nothing_is_said_to_be_written_where_nothing_is(self, bench, capsys):
        bench.add(labels=np.full(SHAPE, IGNORE, np.uint8))
        bench.run("--figure", status=1)
        said = capsys.readouterr().out
        assert "label map(s)" not in said
        assert "No picture" not in said

    def test_only_a_part_of_slices(self, bench, capsys):
        labels = np.full(SHAPE, IGNORE, np.uint8)
        labels[4, 2:9, 3:9] = 1
        bench.add(labels=labels)
        refused(bench, capsys, "of which each voxel is annotated (1 are annotated in part)")

    def test_without_an_ignore_label_slices_are_to_be_named(self, tmp_path, capsys):
        bench = Bench(tmp_path, labels={"background": 0, "one": 1, "two": 2, "three": 3})
        bench.add(labels=sparse(rest=0))
        refused(bench, capsys, "no ignore label that would tell which slices are annotated; name them by --slices")
        refused(bench, capsys, "there is no slice 21 along the axis z, which has 20", "--slices", 21)

    def test_one_bad_case_costs_no_other(self, bench, unchanged, capsys):
        bench.add("a", labels=np.full(SHAPE, IGNORE, np.uint8))
        bench.add("bb")
        bench.run("--suggest", 1, status=1)
        said = capsys.readouterr()
        assert "1 of 2 case(s) failed; the others are done and kept." in said.err
        assert "--continue_prediction" not in said.err
        assert (bench.output / "bb.nii.gz").is_file()
        assert set(json.loads((bench.output / "suggestions.json").read_text())) == {"bb"}

    def test_arguments(self, bench, tmp_path, capsys):
        file = bench.add()
        other = make_propagation_model(tmp_path / "3d", configuration="3d_fullres", network="other")
        unet = make_propagation_model(tmp_path / "2d", network="other")
        for more, message in (
            (("-l", tmp_path / "none"), "none is not there, expected label maps named CASE.nii.gz"),
            (("-l", bench.images), "has no label map named as a case of -i"),
            (("-i", tmp_path / "none"), "none is not there, expected a folder of images"),
            (("-i", file), "is called otherwise than an image of this model, expected CASE_0000.nii.gz"),
            (("-m", tmp_path / "none"), "there is no model folder"),
            (("-m", other), "is of the configuration 3d_fullres (nnUNetTrainer), which is 3d; masks are carried"),
            (("-m", unet), "is no propagation model: nnUNetTrainer has trained a PlainConvUNet"),
            (("-f", 3), "has no fold_3/checkpoint_final.pth"),
            (("-o", file), "is a file, expected a folder"),
        ):
            bench.run(*more, status=1)
            assert message in capsys.readouterr().err
        assert not bench.output.exists()
        bench.add("second")
        bench.run("-l", file, status=1)
        assert "is one label map for 2 cases; name a folder, or one -i" in capsys.readouterr().err

    def test_label_maps_without_images_are_named(self, bench, unchanged, capsys):
        bench.add()
        write_image(bench.labels / "other.nii.gz", sparse(), SPACING)
        bench.run(status=1)
        assert "other.nii.gz has no image in" in capsys.readouterr().err
        assert (bench.output / "case.nii.gz").is_file()

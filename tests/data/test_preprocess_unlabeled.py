import hashlib
import json
import os
from pathlib import Path

import blosc2
import numpy as np
import pytest
import SimpleITK
from data.tiny_dataset import NAME, SPACING, TinyDataset, make_plans, scan, write_image
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from scipy.ndimage import binary_fill_holes

from nnunet_ext.data.preprocess import Summary, preprocess_unlabeled
from nnunet_ext.data.unlabeled_store import UnlabeledDataset, finished_cases, read_metadata, save_case, unlabeled_folder


def run(configuration: str = "3d_fullres", clean: bool = False, processes: int = 1) -> Summary:
    return preprocess_unlabeled(777, "nnUNetPlans", configuration, processes, clean, show_progress_bar=False)


def done_kept_failed(summary: Summary) -> tuple[list[str], list[str], list[str]]:
    return sorted(summary.done), sorted(summary.kept), sorted(f.case for f in summary.failures)


def only_reason(summary: Summary) -> str:
    assert len(summary.failures) == 1
    assert summary.failures[0].kind == "unlabelled"
    return summary.failures[0].reason


def outputs(tiny: TinyDataset, name: str, configuration: str = "3d_fullres") -> list[Path]:
    folder = unlabeled_folder(tiny.preprocessed, f"nnUNetPlans_{configuration}")
    return [folder / f"{name}.b2nd", folder / "valid" / f"{name}.b2nd", folder / f"{name}.json"]


def arrays(tiny: TinyDataset, name: str, configuration: str = "3d_fullres") -> tuple[np.ndarray, np.ndarray]:
    data, valid, _ = outputs(tiny, name, configuration)
    return blosc2.open(str(data))[...], blosc2.open(str(valid))[...]


def state(folder: Path) -> dict[str, tuple[str, int]]:
    """Return digest and modification time of every file below a folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in files}


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
@pytest.mark.parametrize("spacing", [(1, 1, 1), (2, 1, 1.5)])
def test_equals_the_stock_preprocessor(tiny: TinyDataset, configuration, spacing):
    image = tiny.add_unlabeled("a", 1, spacing=spacing)
    plans = make_plans(normalization_schemes=["CTNormalization"])
    plans["transpose_forward"], plans["transpose_backward"] = [1, 0, 2], [1, 0, 2]
    plans["configurations"]["2d"]["use_mask_for_norm"] = [True]
    manager = PlansManager(tiny.write_plans(plans))
    data, properties = manager.image_reader_writer_class().read_images([str(image)])
    expected, nonzero, _ = DefaultPreprocessor(verbose=False).run_case_npy(
        data, None, properties, manager, manager.get_configuration(configuration), tiny.write_dataset_json()
    )
    summary = run(configuration)
    assert done_kept_failed(summary) == (["a"], [], [])
    assert summary.folder == tiny.preprocessed / f"nnUNetPlans_{configuration}_unlabeled"
    found, valid = arrays(tiny, "a", configuration)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    assert valid.dtype == np.uint8
    np.testing.assert_array_equal(valid, nonzero >= 0)
    assert set(np.unique(valid)) == {0, 1}


def test_validity_is_the_nonzero_mask_with_enclosed_holes_filled(tiny: TinyDataset):
    tiny.add_unlabeled("a", 1)
    run()
    mask = binary_fill_holes(scan(1) != 0)
    crop = mask[:, :15, 2:]  # the border of zeros is cut off
    _, valid = arrays(tiny, "a")
    assert valid.shape == (1, 12, 15, 12)
    np.testing.assert_array_equal(valid[0], crop)
    assert valid[0, 8, 9, 5] == 1  # enclosed hole: (8, 9, 7) of the scan
    assert valid[0, 2, 3, 5] == 0  # notch: (2, 3, 7)


def test_metadata_is_json_and_there_is_no_pickle(tiny: TinyDataset):
    image = tiny.add_unlabeled("a", 1)
    folder = run().folder
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == [
        "a.b2nd",
        "a.json",
        "valid/a.b2nd",
    ]
    metadata = json.loads((folder / "a.json").read_text())
    stat = image.stat()
    assert metadata["source"] == {"files": [str(image)], "size": [stat.st_size], "mtime_ns": [stat.st_mtime_ns]}
    assert metadata["shape"] == [1, 12, 15, 12]
    assert metadata["hidden_label"] is False
    assert metadata["plans_signature"]["spacing"] == list(SPACING)
    assert len(metadata["plans_digest"]) == 64


def test_dataset_reads_image_and_mask(tiny: TinyDataset):
    tiny.add_unlabeled("a", 1)
    tiny.add_unlabeled("b", 2)
    dataset = UnlabeledDataset(run().folder, ["b", "a"])
    assert dataset.identifiers == ["a", "b"]
    data, valid, previous, properties = dataset["a"]
    np.testing.assert_array_equal(data[...], arrays(tiny, "a")[0])
    np.testing.assert_array_equal(valid[...], arrays(tiny, "a")[1])
    assert previous is None
    assert properties == {"class_locations": {}}


ROTATED = (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("key", "geometry"),
    [
        ("spacing", {"spacing": (1, 1, 1.1)}),
        ("origin", {"origin": (0.0, 5.0, 0.0)}),
        ("direction", {"direction": ROTATED}),
    ],
)
def test_channels_of_another_geometry(tiny: TinyDataset, key, geometry):
    tiny.write_dataset_json(channels=2)
    tiny.write_plans(make_plans(channels=2))
    for name in ("good", "bad"):
        tiny.add_unlabeled(name, 1)
    tiny.add_unlabeled("good", 2, channel=1)
    second = tiny.add_unlabeled("bad", 2, channel=1, **geometry)
    summary = run()
    assert done_kept_failed(summary) == (["good"], [], ["bad"])
    assert only_reason(summary).startswith(f"{second} has {key} ")
    assert arrays(tiny, "good")[0].shape == (2, 12, 15, 12)
    assert not any(p.exists() for p in outputs(tiny, "bad"))


def test_channels_of_another_shape(tiny: TinyDataset):
    tiny.write_dataset_json(channels=2)
    tiny.write_plans(make_plans(channels=2))
    tiny.add_unlabeled("good", 1)
    tiny.add_unlabeled("good", 2, channel=1)
    tiny.add_unlabeled("bad", 1)
    second = write_image(tiny.raw / "imagesUnlabeled" / "bad_0001.nii.gz", scan(2)[:, :, 1:])
    summary = run()
    assert done_kept_failed(summary) == (["good"], [], ["bad"])
    assert only_reason(summary).startswith(f"{second} has shape (12, 16, 13), but ")


def four_channels_in_a_file(path: Path) -> None:
    SimpleITK.WriteImage(SimpleITK.JoinSeries([SimpleITK.GetImageFromArray(scan(i)) for i in range(4)]), str(path))


def garbage(path: Path) -> None:
    path.write_bytes(b"this is no image")


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (garbage, "cannot be read ("),
        (empty, "cannot be read ("),
        (four_channels_in_a_file, "has 4 channel(s), expected 1"),
    ],
)
def test_a_bad_case_is_named_and_costs_nothing_else(tiny: TinyDataset, write, reason):
    for seed, name in enumerate(("a", "c")):
        tiny.add_unlabeled(name, seed)
    bad = tiny.raw / "imagesUnlabeled" / "b_0000.nii.gz"
    write(bad)
    summary = run()
    assert done_kept_failed(summary) == (["a", "c"], [], ["b"])
    assert only_reason(summary).startswith(str(bad))
    assert reason in only_reason(summary)
    assert summary.failures[0].stage == "3d_fullres"
    assert finished_cases(summary.folder) == ["a", "c"]


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(tiny: TinyDataset, value, reader):
    # ITK reads such values of NIfTI files as 0, so that the array alone does not show them; nibabel hands them on.
    tiny.write_plans(make_plans() | {"image_reader_writer": reader})
    tiny.add_unlabeled("a", 1)
    image = scan(3)
    image[6, 6, 6] = value
    bad = write_image(tiny.raw / "imagesUnlabeled" / "b_0000.nii.gz", image)
    summary = run()
    assert done_kept_failed(summary) == (["a"], [], ["b"])
    assert only_reason(summary).startswith(f"{bad} has NaN or infinite values")


def test_a_rerun_keeps_what_is_finished_and_does_what_was_mended(tiny: TinyDataset):
    tiny.add_unlabeled("a", 1)
    bad = tiny.raw / "imagesUnlabeled" / "b_0000.nii.gz"
    garbage(bad)
    folder = run().folder
    before = state(folder)
    summary = run()
    assert done_kept_failed(summary) == ([], ["a"], ["b"])
    assert state(folder) == before
    write_image(bad, scan(2))
    assert done_kept_failed(run()) == (["b"], ["a"], [])
    before.pop(str(folder / "failed" / "b.json"))
    after = state(folder)
    assert {path: after[path] for path in before} == before
    np.testing.assert_array_equal(arrays(tiny, "b")[1], arrays(tiny, "a")[1])


def test_a_changed_scan_is_redone(tiny: TinyDataset):
    image = tiny.add_unlabeled("a", 1)
    tiny.add_unlabeled("b", 2)
    run()
    before = arrays(tiny, "a")[0]
    other = scan(7)
    other[:, :, 5] *= 3
    write_image(image, other)
    assert done_kept_failed(run()) == (["a"], ["b"], [])
    assert not np.array_equal(arrays(tiny, "a")[0], before)


def test_a_scan_with_another_time_is_redone(tiny: TinyDataset):
    image = tiny.add_unlabeled("a", 1)
    run()
    stat = image.stat()
    os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns - 1_000_000_000))
    assert done_kept_failed(run()) == (["a"], [], [])
    assert done_kept_failed(run()) == ([], ["a"], [])


@pytest.mark.parametrize(
    "change",
    [
        {"spacing": [1.0, 1.0, 2.0]},
        {"normalization_schemes": ["CTNormalization"]},
        {"use_mask_for_norm": [True]},
        {"resampling_fn_data_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}},
        {"resampling_fn_seg_kwargs": {"is_seg": True, "order": 0, "order_z": 0, "force_separate_z": None}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_changed_plans_redo_everything(tiny: TinyDataset, change):
    tiny.add_unlabeled("a", 1)
    run()
    tiny.write_plans(make_plans(**change))
    assert done_kept_failed(run()) == (["a"], [], [])


def test_changed_intensities_and_transposition_redo_everything(tiny: TinyDataset):
    tiny.add_unlabeled("a", 1)
    run()
    plans = make_plans()
    plans["foreground_intensity_properties_per_channel"]["0"]["mean"] += 1
    tiny.write_plans(plans)
    assert done_kept_failed(run()) == (["a"], [], [])
    plans["transpose_forward"], plans["transpose_backward"] = [1, 0, 2], [1, 0, 2]
    tiny.write_plans(plans)
    assert done_kept_failed(run()) == (["a"], [], [])


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 9}, {"patch_size": [16, 16, 8]}, {"preprocessor_name": "SemiSupervisedPreprocessor"}],
    ids=lambda change: next(iter(change)),
)
def test_plans_that_differ_where_preprocessing_does_not_look_keep_everything(tiny: TinyDataset, change):
    tiny.add_unlabeled("a", 1)
    run()
    tiny.write_plans(make_plans(**change))
    assert done_kept_failed(run()) == ([], ["a"], [])


def test_a_removed_scan_is_removed(tiny: TinyDataset):
    image = tiny.add_unlabeled("a", 1)
    tiny.add_unlabeled("b", 2)
    run()
    image.unlink()
    summary = run()
    assert summary.removed == ["a"]
    assert done_kept_failed(summary) == ([], ["b"], [])
    assert not any(path.exists() for path in outputs(tiny, "a"))
    assert all(path.exists() for path in outputs(tiny, "b"))


def test_clean_starts_over(tiny: TinyDataset):
    tiny.add_unlabeled("a", 1)
    folder = run().folder
    (folder / "left_behind.b2nd").write_bytes(b"")
    assert done_kept_failed(run(clean=True)) == (["a"], [], [])
    assert not (folder / "left_behind.b2nd").exists()


@pytest.mark.parametrize("broken", ["no json", "half a json", "a list", "no array", "no mask"])
def test_a_killed_run_leaves_the_case_unfinished(tiny: TinyDataset, broken):
    tiny.add_unlabeled("a", 1)
    folder = run().folder
    expected = arrays(tiny, "a")
    data, valid, metadata = outputs(tiny, "a")
    if broken == "no json":
        metadata.unlink()
    elif broken == "half a json":
        metadata.write_text(metadata.read_text()[:40])
    elif broken == "a list":
        metadata.write_text("[]")
    else:
        (data if broken == "no array" else valid).unlink()
    assert read_metadata(folder, "a") is None
    assert done_kept_failed(run()) == (["a"], [], [])
    np.testing.assert_array_equal(arrays(tiny, "a"), expected)


def test_a_temporary_file_is_never_taken_for_a_case(tiny: TinyDataset):
    tiny.add_unlabeled("a", 1)
    folder = run().folder
    for name in (".b.123.json.tmp", ".b.b2nd.123.tmp", "valid/.b.b2nd.123.tmp", ".b.json"):
        (folder / name).write_text("{}")
    assert finished_cases(folder) == ["a"]
    summary = run()
    assert done_kept_failed(summary) == ([], ["a"], [])
    assert summary.removed == []


@pytest.mark.parametrize("discovered", [True, False])
def test_what_was_made_of_an_older_scan_does_not_outlive_a_failure(tiny: TinyDataset, discovered):
    image = tiny.add_unlabeled("a", 1)
    tiny.add_unlabeled("b", 2)
    run()
    if discovered:
        garbage(image)  # found, but cannot be preprocessed
    else:
        image.rename(image.with_name("a_0003.nii.gz"))  # makes no case
    summary = run()
    assert done_kept_failed(summary) == ([], ["b"], ["a"])
    assert summary.removed == []
    assert finished_cases(summary.folder) == ["b"]


def test_hidden_labels_are_not_read(tiny: TinyDataset):
    _, label = tiny.add_labelled("a", 1)
    tiny.add_labelled("b", 2)
    garbage(label)
    tiny.add_unlabeled("c", 3)
    tiny.write_splits({"train": ["b"], "val": [], "unlabeled": ["a"]})
    summary = run()
    assert done_kept_failed(summary) == (["a", "c"], [], [])
    assert read_metadata(summary.folder, "a")["hidden_label"] is True
    assert read_metadata(summary.folder, "c")["hidden_label"] is False


def test_a_case_that_is_no_longer_hidden_but_unlabelled_is_noted_as_such(tiny: TinyDataset):
    image, _ = tiny.add_labelled("a", 1)
    entry = {"images": [str(image)]}
    tiny.write_dataset_json(dataset={"a": {**entry, "label": "none"}})
    tiny.write_splits({"train": [], "val": [], "unlabeled": ["a"]})
    folder = run().folder
    assert read_metadata(folder, "a")["hidden_label"] is True
    tiny.write_dataset_json(dataset={}, unlabeled={"a": entry})
    tiny.write_splits({"train": [], "val": []})
    run()
    assert read_metadata(folder, "a")["hidden_label"] is False


def test_labelled_data_and_plans_are_untouched(tiny: TinyDataset):
    tiny.add_labelled("x", 5)
    tiny.add_unlabeled("a", 1)
    labelled = tiny.preprocessed / "nnUNetPlans_3d_fullres"
    labelled.mkdir()
    for file in ("x.b2nd", "x_seg.b2nd", "x.pkl"):
        (labelled / file).write_bytes(file.encode())
    before_raw, before = state(tiny.raw), state(tiny.preprocessed)
    run()
    run(clean=True)
    after = state(tiny.preprocessed)
    assert state(tiny.raw) == before_raw
    assert {path: after[path] for path in before} == before
    new = set(after) - set(before)
    lock = tiny.preprocessed / ".nnUNetPlans_3d_fullres_unlabeled.lock"
    assert new == {str(path) for path in (*outputs(tiny, "a"), lock)}


@pytest.mark.parametrize("name", ["../out", "sub/out", "/out"])
def test_save_case_refuses_to_leave_its_folder(tmp_path, name):
    folder = tmp_path / "unlabeled"
    folder.mkdir()
    array = np.zeros((1, 4, 4, 4), np.float32)
    with pytest.raises(ValueError, match="leads out of"):
        save_case(folder, name, array, array, {}, (4, 4, 4))
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_several_processes_give_the_same(tiny: TinyDataset):
    for seed in range(3):
        tiny.add_unlabeled(f"case{seed}", seed, spacing=(1, 1, 1.2))
    garbage(tiny.raw / "imagesUnlabeled" / "bad_0000.nii.gz")
    assert done_kept_failed(run()) == (["case0", "case1", "case2"], [], ["bad"])
    expected = [arrays(tiny, f"case{seed}") for seed in range(3)]
    assert done_kept_failed(run(clean=True, processes=2)) == (["case0", "case1", "case2"], [], ["bad"])
    for seed in range(3):
        for found, wanted in zip(arrays(tiny, f"case{seed}"), expected[seed], strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_missing_plans_and_configuration(tiny: TinyDataset):
    tiny.add_unlabeled("a", 1)
    with pytest.raises(FileNotFoundError, match=r"there are no plans .*OtherPlans\.json; run nnUNetv2_plan"):
        preprocess_unlabeled(NAME, "OtherPlans", "3d_fullres", 1)
    with pytest.raises(ValueError, match=r"no configuration '3d_lowres'; it has 2d, 3d_fullres"):
        preprocess_unlabeled(NAME, "nnUNetPlans", "3d_lowres", 1)

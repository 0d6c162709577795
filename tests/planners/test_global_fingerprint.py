"""The extractor on small files; the labelled cases are named in dataset.json, which starts no pool."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from data.tiny_dataset import TinyDataset, scan, write_image
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from PIL import Image

from nnunet_ext.data.failures import drain
from nnunet_ext.data.parts import Part, only_part
from nnunet_ext.files import BusyError, DiskFullError, only_here
from nnunet_ext.fingerprints import case_statistics
from nnunet_ext.fingerprints import cases as fingerprint
from nnunet_ext.fingerprints.case_statistics import merge
from nnunet_ext.fingerprints.intensity import IntensityStatistics
from nnunet_ext.planners.global_fingerprint import GlobalIntensityFingerprintExtractor

STOCK_KEYS = (
    "spacings",
    "shapes_after_crop",
    "foreground_intensity_properties_per_channel",
    "median_relative_size_after_cropping",
)


def integer_scan(seed: int) -> np.ndarray:
    return (scan(seed) * 3 - 200 * (scan(seed) > 0)).round().astype(np.int16)


def add_labelled(tiny: TinyDataset, seeds: dict[str, int], **more) -> None:
    listed = {}
    for name, seed in seeds.items():
        image, label = tiny.raw / f"{name}_0000.nii.gz", tiny.raw / f"{name}.nii.gz"
        if not image.exists():
            write_image(image, scan(seed), spacing=(1, 1, 1.3))
            write_image(label, (scan(seed) > 110).astype(np.uint8), spacing=(1, 1, 1.3))
        listed[name] = {"images": [str(image)], "label": str(label)}
    tiny.write_dataset_json(dataset=listed, **more)


def add_unlabelled(tiny: TinyDataset, seeds: dict[str, int], **geometry) -> None:
    for name, seed in seeds.items():
        write_image(tiny.raw / "imagesUnlabeled" / f"{name}_0000.nii.gz", integer_scan(seed), **geometry)


def extractor(num_processes: int = 1) -> GlobalIntensityFingerprintExtractor:
    drain()
    one = GlobalIntensityFingerprintExtractor(777, num_processes)
    one.show_progress_bar = False
    # nnU-Net draws 10 million voxels a case when there are ten; the rule is the same with fewer.
    one.num_foreground_voxels_for_intensitystats = 3000
    return one


@pytest.fixture
def read_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that were read, as they are read."""
    seen = []
    original = case_statistics.read_checked

    def read(images, *arguments, **named):
        seen.append(Path(images[0]).name.removesuffix("_0000.nii.gz"))
        return original(images, *arguments, **named)

    monkeypatch.setattr(case_statistics, "read_checked", read)
    return seen


def on_disk(tiny: TinyDataset) -> dict:
    return json.loads((tiny.preprocessed / "dataset_fingerprint.json").read_text())


def voxels_of(tiny: TinyDataset, *files: Path) -> np.ndarray:
    pieces = []
    for file in files:
        image = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))[None].astype(np.float32)
        pieces.append(crop_to_nonzero(image)[0].ravel())
    return np.concatenate(pieces).astype(np.float64)


def test_nnunets_own_keys_equal_nnunets(tiny: TinyDataset):
    add_labelled(tiny, {"l": 1, "m": 2})
    extractor().run()
    ours = on_disk(tiny)
    (tiny.preprocessed / "dataset_fingerprint.json").unlink()
    stock = DatasetFingerprintExtractor(777, 1)
    stock.show_progress_bar = False
    stock.num_foreground_voxels_for_intensitystats = 3000
    stock.run()
    expected = on_disk(tiny)
    assert set(expected) == set(STOCK_KEYS)
    assert {key: ours[key] for key in STOCK_KEYS} == expected
    assert ours["unlabeled_spacings"] == []


def test_global_values_are_numpys_over_all_voxels_of_both_kinds(tiny: TinyDataset):
    add_labelled(tiny, {"l": 1})
    add_unlabelled(tiny, {"u": 3, "v": 4}, spacing=(2, 1, 1))
    result = extractor().run()
    images = [tiny.raw / "l_0000.nii.gz", *(tiny.raw / "imagesUnlabeled" / f"{n}_0000.nii.gz" for n in "uv")]
    voxels = voxels_of(tiny, *images)
    found = result["global_intensity_properties_per_channel"]["0"]
    for key, percentage in (("percentile_00_5", 0.5), ("median", 50), ("percentile_99_5", 99.5)):
        assert found[key] == pytest.approx(np.percentile(voxels, percentage), rel=1e-3)
    for key, value in (("mean", voxels.mean()), ("std", voxels.std()), ("min", voxels.min()), ("max", voxels.max())):
        assert found[key] == pytest.approx(value, rel=1e-6)
    assert result["unlabeled_spacings"] == [[2, 1, 1]] * 2
    # scan() has empty slices at the end of the second and at the beginning of the third axis.
    assert result["unlabeled_shapes_after_crop"] == [[12, 15, 12]] * 2
    assert result == on_disk(tiny)
    assert drain() == []


def test_a_stock_fingerprint_is_completed_and_keeps_its_values(tiny: TinyDataset, read_files):
    add_labelled(tiny, {"l": 1})
    add_unlabelled(tiny, {"u": 3})
    stock = {"spacings": [[9, 9, 9]], "shapes_after_crop": [[8, 8, 8]], "median_relative_size_after_cropping": 0.7}
    stock["foreground_intensity_properties_per_channel"] = {"0": {"mean": 42}}
    (tiny.preprocessed / "dataset_fingerprint.json").write_text(json.dumps(stock))
    result = extractor().run()
    assert {key: result[key] for key in STOCK_KEYS} == stock
    assert result["global_intensity_properties_per_channel"]["0"]["mean"] != 42
    assert len(result["unlabeled_spacings"]) == 1
    assert list(on_disk(tiny))[:4] == list(STOCK_KEYS)


def test_only_new_and_changed_scans_are_read(tiny: TinyDataset, read_files):
    add_labelled(tiny, {"l": 1})
    add_unlabelled(tiny, {"u": 3, "v": 4})
    extractor().run()
    assert read_files == ["l", "u", "v"]
    extractor().run()
    assert len(read_files) == 3
    add_unlabelled(tiny, {"w": 5})
    extractor().run()
    assert read_files[3:] == ["w"]
    changed = tiny.raw / "imagesUnlabeled" / "v_0000.nii.gz"
    os.utime(changed, ns=(1, 1))
    extractor().run()
    assert read_files[4:] == ["v"]
    changed.unlink()
    result = extractor().run()
    assert len(read_files) == 5
    assert len(result["unlabeled_spacings"]) == 2
    kept = tiny.preprocessed / "fingerprint_cases" / "unlabelled"
    assert sorted(path.name for path in kept.iterdir()) == [
        "u.npz",
        "w.npz",
    ]
    fresh = extractor().run(overwrite_existing=True)
    assert sorted(read_files[5:]) == ["l", "u", "w"]
    assert fresh == result


def test_an_interrupted_extraction_continues(tiny: TinyDataset, read_files, monkeypatch):
    add_labelled(tiny, {"l": 1, "m": 2})
    add_unlabelled(tiny, {"u": 3, "v": 4})
    expected = extractor().run()
    shutil.rmtree(tiny.preprocessed / "fingerprint_cases")
    (tiny.preprocessed / "dataset_fingerprint.json").unlink()
    read_files.clear()
    original = case_statistics.save

    def save(case, path):
        if path.name == "u.npz":
            raise KeyboardInterrupt
        original(case, path)

    monkeypatch.setattr(case_statistics, "save", save)
    with pytest.raises(KeyboardInterrupt):
        extractor().run()
    assert read_files == ["l", "m", "u"]
    monkeypatch.setattr(case_statistics, "save", original)
    assert extractor().run() == expected
    assert read_files[3:] == ["u", "v"]
    assert not (tiny.preprocessed / "fingerprint_cases" / "samples").exists()


def test_parts_together_equal_one_extraction_which_then_reads_nothing(tiny: TinyDataset, read_files):
    add_labelled(tiny, {"l": 1, "m": 2, "n": 5})
    add_unlabelled(tiny, {"u": 3, "v": 4})
    extractor().run()
    folder, target = tiny.preprocessed / "fingerprint_cases", tiny.preprocessed / "dataset_fingerprint.json"
    expected = target.read_bytes()
    shutil.rmtree(folder)
    target.unlink()
    read_files.clear()
    with only_part(folder, "fingerprinted", Part(1, 2)):  # another machine is at it
        assert extractor().keep_cases(Part(0, 2))[1] == 3
        with pytest.raises(BusyError, match=r"fingerprint_cases \(part 1 of 2\) is being fingerprinted by process"):
            extractor().run()
    assert read_files == ["l", "n", "v"]
    stranger = folder / "unlabelled" / "of_no_case.npz"
    stranger.touch()
    assert extractor().keep_cases(Part(1, 2))[1] == 2
    assert stranger.exists()  # the next extraction removes it
    assert read_files[3:] == ["m", "u"]
    assert not target.exists()
    extractor().run()
    assert len(read_files) == 5
    assert target.read_bytes() == expected
    assert not stranger.exists()
    assert not (folder / "samples").exists()


def test_a_new_labelled_case_brings_nnunets_keys_up_to_date(tiny: TinyDataset, capsys):
    add_labelled(tiny, {"l": 1})
    extractor().run()
    add_labelled(tiny, {"l": 1, "m": 2})
    result = extractor().run()
    assert len(result["spacings"]) == 2
    assert "foreground statistics were missing or of other labelled cases" in capsys.readouterr().out
    assert extractor().run(overwrite_existing=True) == result


def test_a_dataset_without_labels_gets_the_global_values_under_nnunets_keys(tiny: TinyDataset):
    tiny.write_dataset_json(numTraining=0)
    add_unlabelled(tiny, {"u": 3, "v": 4})
    result = extractor().run()
    assert result["foreground_intensity_properties_per_channel"] == result["global_intensity_properties_per_channel"]
    assert result["spacings"] == result["unlabeled_spacings"]
    assert result["shapes_after_crop"] == [[12, 15, 12]] * 2
    assert result["median_relative_size_after_cropping"] == 12 * 15 * 12 / np.prod(scan(0).shape)
    add_labelled(tiny, {"l": 1})
    assert len(extractor().run()["spacings"]) == 1


def test_bad_cases_are_named_and_the_others_kept(tiny: TinyDataset):
    add_labelled(tiny, {"l": 1, "broken": 2, "shifted": 3})
    (tiny.raw / "broken_0000.nii.gz").write_bytes(b"no image")
    write_image(tiny.raw / "shifted.nii.gz", np.ones((3, 4, 5), np.uint8))
    add_unlabelled(tiny, {"u": 3})
    folder = tiny.raw / "imagesUnlabeled"
    nan = scan(4)
    nan[5, 5, 5] = np.nan
    write_image(folder / "nan_0000.nii.gz", nan)
    four = SimpleITK.JoinSeries([SimpleITK.GetImageFromArray(scan(1))] * 2)
    SimpleITK.WriteImage(four, str(folder / "four_0000.nii.gz"))
    write_image(folder / "stray.nii.gz", scan(5))
    result = extractor().run()
    assert len(result["spacings"]) == 1
    assert len(result["unlabeled_spacings"]) == 1
    found = {(failure.kind, failure.case): failure.reason for failure in drain()}
    assert set(found) == {
        ("labelled", "broken"),
        ("labelled", "shifted"),
        ("unlabelled", "nan"),
        ("unlabelled", "four"),
        ("unlabelled", "stray.nii.gz"),
    }
    assert "broken_0000.nii.gz cannot be read" in found["labelled", "broken"]
    assert "shifted.nii.gz has shape (3, 4, 5), but its image has (12, 16, 14)" in found["labelled", "shifted"]
    assert "nan_0000.nii.gz has NaN or infinite values" in found["unlabelled", "nan"]
    assert "four_0000.nii.gz has 2 channel(s), expected 1" in found["unlabelled", "four"]
    assert "no channel suffix" in found["unlabelled", "stray.nii.gz"]
    write_image(tiny.raw / "broken_0000.nii.gz", scan(2), spacing=(1, 1, 1.3))
    assert len(extractor().run()["spacings"]) == 2  # mended, and nnU-Net's keys know of it


def test_a_scan_that_breaks_later_no_longer_counts(tiny: TinyDataset):
    tiny.write_dataset_json(numTraining=0)
    add_unlabelled(tiny, {"u": 3, "v": 4})
    extractor().run()
    (tiny.raw / "imagesUnlabeled" / "v_0000.nii.gz").write_bytes(b"no image")
    assert len(extractor().run()["spacings"]) == 1


def test_channels_are_counted(tiny: TinyDataset):
    tiny.write_dataset_json(channels=2, numTraining=0)
    for name, seed in {"u": 3, "v": 4}.items():
        for channel in range(2):
            tiny.add_unlabeled(name, seed + channel, channel)
    (tiny.raw / "imagesUnlabeled" / "v_0001.nii.gz").unlink()
    result = extractor().run()
    assert set(result["global_intensity_properties_per_channel"]) == {"0", "1"}
    assert [failure.case for failure in drain()] == ["v"]


def test_no_case_and_no_readable_case_are_errors(tiny: TinyDataset):
    tiny.write_dataset_json(dataset={})
    with pytest.raises(FileNotFoundError, match=r"has no case at all\. Looked in .*imagesUnlabeled"):
        extractor().run()
    tiny.write_dataset_json(numTraining=0)
    add_unlabelled(tiny, {"u": 3})
    (tiny.raw / "imagesUnlabeled" / "u_0000.nii.gz").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"none of nnU-Net's readers opens any image of this dataset, e\.g\. .*u_0000"):
        extractor().run()


def test_labels_without_foreground_are_an_error(tiny: TinyDataset):
    add_labelled(tiny, {"l": 1})
    write_image(tiny.raw / "l.nii.gz", np.zeros(scan(1).shape, np.uint8), spacing=(1, 1, 1.3))
    with pytest.raises(RuntimeError, match="no labelled case has a voxel with a label above 0"):
        extractor().run()


def test_warnings_name_the_case(tiny: TinyDataset, capsys):
    tiny.write_dataset_json(numTraining=0, channel_names={"0": "CT"})
    add_unlabelled(tiny, {"u": 3, "v": 4, "w": 5})
    tiny.add_unlabeled("decimals", 6)
    write_image(tiny.raw / "imagesUnlabeled" / "flat_0000.nii.gz", np.full(scan(0).shape, 7, np.int16))
    write_image(tiny.raw / "imagesUnlabeled" / "thin_0000.nii.gz", integer_scan(3)[:1])
    write_image(tiny.raw / "imagesUnlabeled" / "bright_0000.nii.gz", 50 * integer_scan(3))
    write_image(tiny.raw / "imagesUnlabeled" / "coarse_0000.nii.gz", integer_scan(3), spacing=(8, 0.9, 0.8))
    turned = (-1, 0, 0, 0, 1, 0, 0, 0, 1)
    write_image(tiny.raw / "imagesUnlabeled" / "turned_0000.nii.gz", integer_scan(3), direction=turned)
    extractor().run()
    text = capsys.readouterr().out
    assert drain() == []
    for kind, case in (
        ("constant image", "flat: channel CT: 7 everywhere"),
        ("one slice", "thin: shape (1, 16, 14)"),
        ("CT values that are no integers", "decimals"),
        ("intensities unlike the others", "bright: channel CT: 99 % in"),
        ("spacing unlike the others", "coarse: 8 x 0.9 x 0.8 mm, median 2.4 x 0.9 x 0.8 mm"),
        ("orientation unlike the others", "turned: RPS, most are LPS"),
    ):
        paragraph = text.split(f"WARNING: {kind}")[1].split("WARNING:")[0]
        assert case in paragraph
    assert "  u:" not in text


def test_a_damaged_file_of_a_case_is_made_anew(tiny: TinyDataset, read_files):
    tiny.write_dataset_json(numTraining=0)
    add_unlabelled(tiny, {"u": 3, "v": 4})
    expected = extractor().run()
    kept = tiny.preprocessed / "fingerprint_cases" / "unlabelled" / "v.npz"
    for damage in (b"", kept.read_bytes()[:200], b"PK nonsense" * 50):
        kept.write_bytes(damage)
        read_files.clear()
        assert extractor().run() == expected
        assert read_files == ["v"]


def test_merging_a_stream_of_cases_equals_merging_one_by_one():
    rng = np.random.default_rng(0)
    cases = [[IntensityStatistics.of(rng.integers(-9, 9, 20))] for _ in range(13)]
    expected = IntensityStatistics()
    for (one,) in cases:
        expected = expected + one
    (merged,) = merge(iter(cases))
    assert merged.summary() == expected.summary()
    assert merged.counts.tolist() == expected.counts.tolist()
    assert merge([]) == []


def test_any_case_name_makes_a_file_of_the_folder(tmp_path):
    for name in ("../x", "a/b", "a b", "ä", "字" * 60, "字" * 59 + "x"):
        file = case_statistics.case_file(tmp_path, name)
        file.touch(exist_ok=False)
        assert file.parent == tmp_path


def test_the_fingerprint_is_never_half_written(tiny: TinyDataset, monkeypatch):
    tiny.write_dataset_json(numTraining=0)
    add_unlabelled(tiny, {"u": 3})
    extractor().run()
    before = on_disk(tiny)
    add_unlabelled(tiny, {"v": 4})
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        fingerprint.write_fingerprint(before | {"new": 1}, tiny.preprocessed / "dataset_fingerprint.json")
    assert on_disk(tiny) == before


def test_rgb_in_one_file_is_three_channels(tiny: TinyDataset):
    tiny.write_dataset_json(channels=3, file_ending=".png", numTraining=0)
    rng = np.random.default_rng(0)
    folder = tiny.raw / "imagesUnlabeled"
    folder.mkdir()
    pictures = {name: rng.integers(0, 255, (8, 9, 3)).astype(np.uint8) for name in "uv"}
    for name, picture in pictures.items():
        Image.fromarray(picture).save(folder / f"{name}_0000.png")
    result = extractor().run()
    assert drain() == []
    assert result["unlabeled_shapes_after_crop"] == [[1, 8, 9]] * 2
    for channel in range(3):
        voxels = np.concatenate([picture[..., channel].ravel() for picture in pictures.values()])
        found = result["global_intensity_properties_per_channel"][str(channel)]
        assert found["median"] == np.median(voxels)
        assert found["max"] == voxels.max()


def test_labelled_channels_are_judged_as_nnunet_judges_them(tiny: TinyDataset):
    listed = {}
    for name in "lm":
        images = [tiny.raw / f"{name}_{channel:04d}.nii.gz" for channel in range(2)]
        for channel, image in enumerate(images):
            write_image(image, scan(channel), origin=(0.01 * channel * (name == "m"), 0, 0))
        write_image(tiny.raw / f"{name}.nii.gz", (scan(1) > 110).astype(np.uint8))
        listed[name] = {"images": [str(i) for i in images], "label": str(tiny.raw / f"{name}.nii.gz")}
    tiny.write_dataset_json(channels=2, dataset=listed)
    assert len(extractor().run()["spacings"]) == 2
    assert drain() == []


def test_where_no_labelled_case_can_be_read_it_says_so_and_keeps_the_others(tiny: TinyDataset, read_files):
    add_labelled(tiny, {"l": 1})
    add_unlabelled(tiny, {"u": 3})
    (tiny.raw / "l.nii.gz").write_bytes(b"no label")
    with pytest.raises(RuntimeError, match="no labelled case could be read, .* what was found of the others is kept"):
        extractor().run()
    (failure,) = drain()
    assert "l.nii.gz cannot be read" in failure.reason
    write_image(tiny.raw / "l.nii.gz", (scan(1) > 110).astype(np.uint8), spacing=(1, 1, 1.3))
    read_files.clear()
    extractor().run()
    assert read_files == ["l"]


def test_a_killed_clean_leaves_no_old_values(tiny: TinyDataset, monkeypatch):
    add_labelled(tiny, {"l": 1, "m": 2})
    extractor().run()
    for name in "lm":
        write_image(tiny.raw / f"{name}_0000.nii.gz", 5 * scan(1), spacing=(1, 1, 1.3))
    original = case_statistics.save

    def save(case, path):
        if path.name == "m.npz":
            raise KeyboardInterrupt
        original(case, path)

    monkeypatch.setattr(case_statistics, "save", save)
    with pytest.raises(KeyboardInterrupt):
        extractor().run(overwrite_existing=True)
    monkeypatch.setattr(case_statistics, "save", original)
    continued = extractor().run()
    assert continued == extractor().run(overwrite_existing=True)
    assert continued["foreground_intensity_properties_per_channel"]["0"]["mean"] > 500


def test_another_reader_or_number_of_channels_is_noticed(tiny: TinyDataset, read_files):
    tiny.write_dataset_json(numTraining=0)
    add_unlabelled(tiny, {"u": 3}, spacing=(3, 1, 1))
    assert extractor().run()["spacings"] == [[3, 1, 1]]
    tiny.write_dataset_json(numTraining=0, overwrite_image_reader_writer="NibabelIOWithReorient")
    assert extractor().run(False)["unlabeled_spacings"] == [[3, 1, 1]]
    assert read_files == ["u", "u"]


def test_a_labelled_case_that_failed_for_once_is_in_nnunets_keys_next_time(tiny: TinyDataset, monkeypatch):
    add_labelled(tiny, {"l": 1, "m": 2})
    original = case_statistics.save

    def save(case, path):
        if path.name == "m.npz":
            raise MemoryError("for once")
        original(case, path)

    monkeypatch.setattr(case_statistics, "save", save)
    assert len(extractor().run()["spacings"]) == 1
    (failure,) = drain()
    assert "m_0000.nii.gz: for once" in failure.reason
    monkeypatch.setattr(case_statistics, "save", original)
    again = extractor().run()
    assert len(again["spacings"]) == 2
    assert again == extractor().run(overwrite_existing=True)


def test_a_stray_file_among_the_labelled_is_named(tiny: TinyDataset):
    tiny.add_labelled("l", 1)
    tiny.write_dataset_json(numTraining=1)
    write_image(tiny.raw / "imagesTr" / "patient7.nii.gz", scan(2))
    result = extractor().run()
    assert len(result["spacings"]) == 1
    (failure,) = drain()
    assert failure.kind == "labelled"
    assert "imagesTr/patient7.nii.gz has no channel suffix; expected CASE_0000.nii.gz" in failure.reason


def test_a_file_that_another_process_is_writing_is_left_alone(tiny: TinyDataset):
    tiny.write_dataset_json(numTraining=0)
    add_unlabelled(tiny, {"u": 3})
    folder = tiny.preprocessed / "fingerprint_cases" / "unlabelled"
    folder.mkdir(parents=True)
    for name in (".v.npz.1.tmp", f".w.npz.{2**22 + 1}.tmp"):  # of a process that is there, and of one that cannot be
        (folder / name).touch()
    extractor().run()
    assert sorted(path.name for path in folder.iterdir()) == [".v.npz.1.tmp", "u.npz"]


def test_a_name_twice_in_dataset_json_is_an_error(tiny: TinyDataset):
    add_unlabelled(tiny, {"u": 3})
    text = '{"channel_names": {"0": "CT"}, "labels": {"background": 0}, "numTraining": 0, "file_ending": ".nii.gz", '
    entry = '"A": {"images": ["imagesUnlabeled/u_0000.nii.gz"]}'
    (tiny.raw / "dataset.json").write_text(text + '"unlabeled": {' + entry + ", " + entry + "}}")
    with pytest.raises(ValueError, match=r"dataset\.json has \['A'\] more than once"):
        extractor().run()


def test_a_second_extraction_is_refused_at_once_and_costs_nothing(tiny: TinyDataset):
    tiny.write_dataset_json(numTraining=0)
    add_unlabelled(tiny, {"u": 3})
    extractor().run()
    before = on_disk(tiny)
    folder = tiny.preprocessed / "fingerprint_cases"
    reason = rf"{folder} is being fingerprinted by process {os.getpid()} on .*; wait until it is done, or stop it"
    with only_here(folder, "fingerprinted"), pytest.raises(BusyError, match=reason):
        extractor().run(overwrite_existing=True)
    assert on_disk(tiny) == before
    assert len(list((folder / "unlabelled").iterdir())) == 1


@pytest.mark.parametrize("file", ["dataset_fingerprint.json", "fingerprint_cases/foreground.json"])
def test_a_file_that_is_no_json_is_named(tiny: TinyDataset, file):
    add_labelled(tiny, {"l": 1})
    extractor().run()
    (tiny.preprocessed / file).write_text('{"spacings":')
    with pytest.raises(ValueError, match=rf"{file} is no JSON \(line 1, column 13: .*\); remove it, it is made again"):
        extractor().run()
    (tiny.preprocessed / file).unlink()
    extractor().run()


def test_pipes_and_dangling_links_are_failures_by_name(tiny: TinyDataset):
    add_labelled(tiny, {"l": 1, "m": 2, "n": 3})
    add_unlabelled(tiny, {"u": 4})
    pipes = [tiny.raw / "l_0000.nii.gz", tiny.raw / "m.nii.gz", tiny.raw / "imagesUnlabeled" / "v_0000.nii.gz"]
    for pipe in pipes:
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe)
    (tiny.raw / "imagesUnlabeled" / "w_0000.nii.gz").symlink_to("gone")
    extractor().run()
    failures = drain()
    assert sorted(failure.case for failure in failures) == ["l", "m", "v", "w"]
    for pipe in pipes:
        assert sum(failure.reason.startswith(f"{pipe} is no regular file") for failure in failures) == 1
    assert len(on_disk(tiny)["spacings"]) == 1


@pytest.mark.parametrize("change", [{"file_ending": 5}, {"labels": ["organ"]}, {"channel_names": 1}])
def test_a_dataset_json_that_cannot_be_is_one_error(tiny: TinyDataset, change):
    content = tiny.write_dataset_json() | change
    (tiny.raw / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"dataset\.json: {next(iter(change))} is .*, expected"):
        extractor()


def test_a_full_disk_is_not_the_fault_of_a_scan_and_ends_the_extraction(tiny: TinyDataset, monkeypatch):
    tiny.write_dataset_json(numTraining=0)
    add_unlabelled(tiny, {"u": 3, "v": 4})
    asked = []

    def no_room(*_, **__):
        asked.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", no_room)
    with pytest.raises(
        DiskFullError, match=r"u\.npz cannot be written \(.*No space left on device\): no room on its disk"
    ):
        extractor().run()
    assert len(asked) == 1
    assert drain() == []


@pytest.mark.parametrize("missing", ["label", "image"])
def test_where_no_case_is_usable_each_reason_is_said(tiny: TinyDataset, missing):
    add_labelled(tiny, {"a": 1, "b": 2})
    for name in "ab":
        (tiny.raw / (f"{name}.nii.gz" if missing == "label" else f"{name}_0000.nii.gz")).unlink()
    with pytest.raises(ValueError, match=r"has no case that can be read:\n  a: .*does not exist.*\n  b: "):
        extractor().run()

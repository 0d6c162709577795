import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest
from batchgenerators.utilities.file_and_folder_operations import load_pickle
from data.tiny_dataset import NAME, SPACING, TinyDataset, make_plans, scan, set_environment, write_image
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext import files
from nnunet_ext.data.failures import LABELLED, UNLABELLED, Failure, drain, format_report
from nnunet_ext.data.labelled import usable_labelled
from nnunet_ext.files import BusyError, DiskFullError, only_here
from nnunet_ext.planners.preprocessor import SemiSupervisedPreprocessor, read_labelled

PLANS = make_plans("SemiSupervisedPlans", preprocessor_name="SemiSupervisedPreprocessor")


def add_labelled(tiny: TinyDataset, seeds: dict[str, int]) -> dict[str, dict]:
    """Write labelled cases of another spacing than the plans' and name them in dataset.json, which starts no pool."""
    dataset = {}
    for name, seed in seeds.items():
        image, label = tiny.raw / f"{name}_0000.nii.gz", tiny.raw / f"{name}.nii.gz"
        write_image(image, scan(seed), spacing=(1, 1, 1.3))
        write_image(label, (scan(seed) > 110).astype(np.uint8), spacing=(1, 1, 1.3))
        dataset[name] = {"images": [str(image)], "label": str(label)}
    tiny.write_dataset_json(dataset=dataset)
    return dataset


def run(preprocessor: SemiSupervisedPreprocessor) -> list[Failure]:
    drain()
    preprocessor.show_progress_bar = False
    preprocessor.run(777, "3d_fullres", "SemiSupervisedPlans", 1)
    return drain()


def hashes(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


@dataclass
class Run:
    tiny: TinyDataset
    output: Path
    unlabelled: Path
    dataset: dict[str, dict]
    failures: list[Failure]
    stock_before: dict[str, str]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """One run over good and bad cases of both kinds; worker processes take seconds to start."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny = set_environment(monkeypatch, tmp_path_factory.mktemp("semi"))
        tiny.write_plans(PLANS)
        dataset = add_labelled(tiny, {"l": 1, "bad": 2, "m": 3, "nan": 5})
        Path(dataset["bad"]["images"][0]).write_bytes(b"this is no image")
        holes = scan(5)
        holes[6, 6, 6] = np.nan
        write_image(Path(dataset["nan"]["images"][0]), holes, spacing=(1, 1, 1.3))
        tiny.add_unlabeled("u", 4)
        (tiny.raw / "imagesUnlabeled" / "worse_0000.nii.gz").write_bytes(b"this is no image")
        output = tiny.preprocessed / "SemiSupervisedPlans_3d_fullres"
        output.mkdir()
        (output / "of_an_earlier_run.b2nd").write_bytes(b"")
        stock = tiny.preprocessed / "nnUNetPlans_3d_fullres"
        stock.mkdir()
        (stock / "l.b2nd").write_bytes(b"stock data")
        before = hashes(stock)
        failures = run(SemiSupervisedPreprocessor(verbose=False))
        yield Run(tiny, output, tiny.preprocessed / f"{output.name}_unlabeled", dataset, failures, before)


def test_labelled_cases_are_what_the_stock_preprocessor_writes(done: Run, tmp_path):
    manager = PlansManager(PLANS)
    configuration = manager.get_configuration("3d_fullres")
    dataset_json = json.loads((done.tiny.raw / "dataset.json").read_text())
    for name in ("l", "m"):
        files = done.dataset[name]
        DefaultPreprocessor(verbose=False).run_case_save(
            str(tmp_path / name), files["images"], files["label"], manager, configuration, dataset_json
        )
    ours, stock = nnUNetDatasetBlosc2(str(done.output)), nnUNetDatasetBlosc2(str(tmp_path))
    assert ours.identifiers == stock.identifiers == ["l", "m"]
    for name in ours.identifiers:
        for mine, theirs in zip(ours.load_case(name)[:2], stock.load_case(name)[:2], strict=True):
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine[...], theirs[...])
        mine, theirs = (load_pickle(str(folder / f"{name}.pkl")) for folder in (done.output, tmp_path))
        locations, expected = mine.pop("class_locations"), theirs.pop("class_locations")
        assert locations.keys() == expected.keys()
        assert all(np.array_equal(locations[key], expected[key]) for key in locations)
        assert mine == theirs


def test_nothing_is_left_of_earlier_and_of_failed_cases(done: Run):
    assert sorted(p.name for p in done.output.iterdir()) == sorted(
        f"{name}{ending}" for name in ("l", "m") for ending in (".b2nd", "_seg.b2nd", ".pkl")
    )


def test_unlabelled_cases_lie_in_a_folder_of_their_own(done: Run):
    assert sorted(p.name for p in done.unlabelled.glob("*.json")) == ["u.json"]


def test_failures_name_file_kind_and_stage(done: Run):
    labelled, not_finite, unlabelled = done.failures
    assert (labelled.case, labelled.kind, labelled.stage) == ("bad", LABELLED, "3d_fullres")
    assert done.dataset["bad"]["images"][0] in labelled.reason
    assert (not_finite.case, not_finite.kind, not_finite.stage) == ("nan", LABELLED, "3d_fullres")
    assert not_finite.reason.startswith(f"{done.dataset['nan']['images'][0]} has NaN or infinite values")
    assert (unlabelled.case, unlabelled.kind) == ("worse", UNLABELLED)
    report = format_report(done.failures)
    assert report.index("LABELLED cases") < report.index("bad [3d_fullres]") < report.index("Unlabelled cases")
    assert report.startswith("3 case(s) failed")


def test_data_of_stock_plans_is_untouched(done: Run):
    assert hashes(done.tiny.preprocessed / "nnUNetPlans_3d_fullres") == done.stock_before


class KillsItsWorker(SemiSupervisedPreprocessor):
    """Dies halfway through a case, as a process without memory does."""

    def run_case_save(self, output_filename_truncated, *args):
        Path(f"{output_filename_truncated}.b2nd").write_bytes(b"half an array")
        os._exit(9)


def test_a_worker_that_dies_leaves_no_half_case_and_hidden_cases_are_done_all_the_same(tiny: TinyDataset):
    tiny.write_plans(PLANS)
    add_labelled(tiny, {"l": 1})
    tiny.write_splits({"train": [], "val": [], "unlabeled": ["l"]})
    failures = run(KillsItsWorker(verbose=False))
    assert [(f.case, f.kind) for f in failures] == [("l", LABELLED)]
    assert "a worker process died" in failures[0].reason
    output = tiny.preprocessed / "SemiSupervisedPlans_3d_fullres"
    assert list(output.iterdir()) == []
    metadata = json.loads((tiny.preprocessed / f"{output.name}_unlabeled" / "l.json").read_text())
    assert metadata["hidden_label"] is True


def test_without_any_case_it_says_where_unlabelled_ones_go(tiny: TinyDataset, capsys):
    tiny.write_plans(PLANS)
    tiny.write_dataset_json(dataset={})
    assert run(SemiSupervisedPreprocessor(verbose=False)) == []
    printed = capsys.readouterr()
    text = printed.out + printed.err
    assert f"{NAME} has no unlabelled case" in text
    assert str(tiny.raw / "imagesUnlabeled") in text
    assert not (tiny.preprocessed / "SemiSupervisedPlans_3d_fullres_unlabeled").exists()


def test_missing_plans(tiny: TinyDataset):
    with pytest.raises(FileNotFoundError, match=r"there are no plans .*SemiSupervisedPlans\.json"):
        run(SemiSupervisedPreprocessor(verbose=False))


def test_labelled_cases_are_checked_as_in_the_fingerprint(tiny: TinyDataset):
    image = write_image(tiny.raw / "a_0000.nii.gz", scan(1))
    label = write_image(tiny.raw / "a.nii.gz", np.ones((12, 16, 14), np.uint8))
    smaller = write_image(tiny.raw / "b.nii.gz", np.ones((12, 16, 13), np.uint8))
    data, segmentation, properties = read_labelled((str(image),), str(label), SimpleITKIO, 1)
    assert data.shape == segmentation.shape == (1, 12, 16, 14)
    assert properties["spacing"] == pytest.approx(SPACING)
    with pytest.raises(ValueError, match=rf"{smaller} has shape \(12, 16, 13\), but its image has \(12, 16, 14\)"):
        read_labelled((str(image),), str(smaller), SimpleITKIO, 1)
    smaller.write_bytes(b"no image")
    with pytest.raises(ValueError, match=rf"{smaller} cannot be read \(.*\); .* remove it"):
        read_labelled((str(image),), str(smaller), SimpleITKIO, 1)
    with pytest.raises(ValueError, match=r"has 1 channel\(s\), expected 2"):
        read_labelled((str(image),), str(label), SimpleITKIO, 2)


def finished(tiny: TinyDataset) -> Path:
    """Write plans, and something in the place of what was preprocessed with them."""
    tiny.write_plans(PLANS)
    output = tiny.preprocessed / "SemiSupervisedPlans_3d_fullres"
    output.mkdir()
    (output / "of_an_earlier_run.b2nd").write_bytes(b"data")
    return output


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"spacing": [1.0, -1.0, 1.0]}, r"SemiSupervisedPlans\.json, configuration '3d_fullres' has spacing \[1"),
        ({"data_identifier": ".."}, r"has data_identifier '\.\.', expected the name of a folder, without a path"),
        ({"data_identifier": "ROOT/elsewhere"}, "has data_identifier '/.*, expected the name of a folder"),
    ],
)
def test_a_mistake_in_the_plans_clears_nothing(tiny: TinyDataset, change, reason):
    output = finished(tiny)
    add_labelled(tiny, {"l": 1})
    (tiny.root / "elsewhere").mkdir()
    (tiny.root / "elsewhere" / "file").write_bytes(b"of somebody else")
    change = {key: v.replace("ROOT", str(tiny.root)) if isinstance(v, str) else v for key, v in change.items()}
    tiny.write_plans(make_plans("SemiSupervisedPlans", preprocessor_name="SemiSupervisedPreprocessor", **change))
    before = hashes(tiny.root)
    with pytest.raises(ValueError, match=reason):
        run(SemiSupervisedPreprocessor(verbose=False))
    assert hashes(tiny.root) == before
    assert output.is_dir()


def test_a_mistake_in_the_raw_cases_clears_nothing(tiny: TinyDataset):
    output = finished(tiny)
    add_labelled(tiny, {"l": 1})
    tiny.add_unlabeled("l", 2)
    with pytest.raises(ValueError, match=r"\['l'\] is a labelled case .* and an unlabelled one at once"):
        run(SemiSupervisedPreprocessor(verbose=False))
    assert [path.name for path in output.iterdir()] == ["of_an_earlier_run.b2nd"]


@pytest.mark.parametrize("ending", ["", "_unlabeled"])
def test_while_another_process_preprocesses_nothing_is_cleared(tiny: TinyDataset, ending):
    output = finished(tiny)
    add_labelled(tiny, {"l": 1})
    tiny.add_unlabeled("u", 2)
    place = output.with_name(f"{output.name}{ending}")
    with only_here(place, "preprocessed"), pytest.raises(BusyError, match=f"{place} is being preprocessed by"):
        run(SemiSupervisedPreprocessor(verbose=False))
    assert [path.name for path in output.iterdir()] == ["of_an_earlier_run.b2nd"]


def test_a_full_disk_ends_the_run(tiny: TinyDataset, monkeypatch):
    finished(tiny)
    dataset = add_labelled(tiny, {"l": 1})
    manager = PlansManager(PLANS)
    monkeypatch.setattr(files, "_free_bytes", lambda _: 1000)
    monkeypatch.setattr(nnUNetDatasetBlosc2, "save_case", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("NULL")))
    arguments = (dataset["l"]["images"], dataset["l"]["label"], manager, manager.get_configuration("3d_fullres"))
    target = tiny.preprocessed / "SemiSupervisedPlans_3d_fullres" / "l"
    preprocessor = SemiSupervisedPreprocessor(verbose=False)
    with pytest.raises(DiskFullError, match=rf"{target.parent} cannot be written \(NULL\): no room on its disk"):
        preprocessor.run_case_save(str(target), *arguments, json.loads((tiny.raw / "dataset.json").read_text()))
    assert [path.name for path in target.parent.iterdir()] == ["of_an_earlier_run.b2nd"]
    error = DiskFullError("no room")
    monkeypatch.setattr("nnunet_ext.planners.preprocessor.map_isolated", lambda *_, **__: iter_of(("l", None, error)))
    with pytest.raises(DiskFullError, match="no room"):
        run(preprocessor)


def iter_of(*results):
    yield from results


def test_plans_that_were_moved_here_miss_dataset_json(tiny: TinyDataset):
    output = finished(tiny)
    add_labelled(tiny, {"l": 1})
    (tiny.preprocessed / "dataset.json").unlink()
    reason = (
        rf"{tiny.preprocessed}/dataset\.json is missing, which planning puts there; copy {tiny.raw}/dataset\.json to"
    )
    with pytest.raises(FileNotFoundError, match=reason):
        run(SemiSupervisedPreprocessor(verbose=False))
    assert output.is_dir()


def test_plans_of_other_channels_are_one_error(tiny: TinyDataset):
    finished(tiny)
    tiny.write_dataset_json(channels=2, dataset={})
    for channel in range(2):
        tiny.add_unlabeled("u", channel, channel)
    reason = r"has no foreground_intensity_properties_per_channel for channel 1 of dataset\.json \(2 channels\)"
    with pytest.raises(ValueError, match=reason):
        run(SemiSupervisedPreprocessor(verbose=False))
    assert drain() == []


def test_where_no_labelled_case_can_be_read_nothing_is_cleared(tiny: TinyDataset, capsys):
    output = finished(tiny)
    add_labelled(tiny, {"l": 1})
    (tiny.raw / "l.nii.gz").unlink()
    before = hashes(output)
    (failure,) = run(SemiSupervisedPreprocessor(verbose=False))
    assert "l.nii.gz does not exist" in failure.reason
    assert hashes(output) == before
    assert "no labelled case of Dataset777_Tiny can be read" in capsys.readouterr().out


def test_all_channels_in_one_file_are_taken_as_nnunet_takes_them(tiny: TinyDataset):
    image, label = tiny.raw / "a_0000.nii.gz", write_image(tiny.raw / "a.nii.gz", np.ones((12, 16, 14), np.uint8))
    volume = np.stack([scan(1), scan(2)], -1).transpose(2, 1, 0, 3)  # x, y, z, channel
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([0.8, 0.9, 2.4, 1])), image)
    content = tiny.write_dataset_json(channels=2)
    listed = {"a": {"images": [str(image)], "label": str(label)}}
    assert usable_labelled(tiny.raw, content, listed, "") == (listed, [])
    data, _, _ = read_labelled((str(image),), str(label), SimpleITKIO, 2)
    np.testing.assert_array_equal(data, np.stack([scan(1), scan(2)]))
    usable, (failure,) = usable_labelled(tiny.raw, tiny.write_dataset_json(channels=3), listed, "")
    assert (usable, "expected 3" in failure.reason) == ({}, True)


def test_notes_of_macos_are_no_cases(tiny: TinyDataset):
    listed = {"._a": {"images": ["._a_0000.nii.gz"], "label": "._a.nii.gz"}}
    assert usable_labelled(tiny.raw, tiny.write_dataset_json(), listed, "") == ({}, [])


def test_where_every_case_fails_nothing_is_cleared(tiny: TinyDataset, monkeypatch):
    tiny.write_plans(PLANS)
    add_labelled(tiny, {"l": 1, "m": 2})
    output = tiny.preprocessed / "SemiSupervisedPlans_3d_fullres"
    assert run(SemiSupervisedPreprocessor(verbose=False)) == []
    before = hashes(output)
    assert len(before) == 6
    with monkeypatch.context() as patched:
        patched.setattr("nnunet_ext.planners.preprocessor.map_isolated", failing)
        assert [failure.case for failure in run(SemiSupervisedPreprocessor(verbose=False))] == ["l", "m"]
    assert hashes(output) == before


def failing(work, tasks, processes, always_spawn):
    yield from ((name, None, RuntimeError("a mistake that is in every case")) for name in tasks)

"""With the plugin installed, and after it has worked in a dataset, stock nnU-Net does what it did before."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import SimpleITK
import torch
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

pytestmark = pytest.mark.integration

OFF = {"NNUNET_EXT_DISABLE": "1"}
STOCK = "nnUNetPlans"
CASES = "nnUNetPlans_3d_fullres"
GLOBAL = ("-fpe", "GlobalIntensityFingerprintExtractor")


@dataclass(frozen=True)
class Both:
    """The same raw dataset in two preprocessed folders: with the plugin and its planner, and without."""

    workspace: Any
    used: Path
    untouched: Path
    written: dict[Path, int]
    unlabelled_report: str


@pytest.fixture(scope="module")
def both(blobs, prepared, tmp_path_factory) -> Both:
    """Stock planning with the plugin, then ours and unlabelled cases beside it; and stock planning without the plugin.

    ``prepared`` is needed only because it breaks and mends the raw scans.
    """
    folders = [tmp_path_factory.mktemp(name) for name in ("used", "untouched")]
    used, untouched = (replace(blobs, variables={"nnUNet_preprocessed": str(folder)}) for folder in folders)
    used.plan_and_preprocess("ExperimentPlanner")
    written = written_at(used.preprocessed)
    # Ours makes the fingerprint anew; what stock planning makes of it must be what it was.
    used.plan_and_preprocess("SemiSupervisedPlanner", more=(*GLOBAL, "--clean"))
    again = ("nnUNetv2_plan_experiment", "-d", blobs.number, "-overwrite_plans_name", "Again")
    used.run(*again, nnUNet_n_proc_DA="1")
    stock = ("preprocess_unlabeled", "-d", blobs.number, "-p", STOCK, "-c", "3d_fullres", "-np", 1, "--no_pbar")
    report = used.run("nnUNetv2_ext", *stock).output
    untouched.plan_and_preprocess("ExperimentPlanner", **OFF)
    return Both(used, used.preprocessed, untouched.preprocessed, written, report)


def written_at(folder: Path) -> dict[Path, int]:
    """When the stock plans and the cases preprocessed with them were written."""
    return {path: path.stat().st_mtime_ns for path in (folder / f"{STOCK}.json", *(folder / CASES).iterdir())}


def decode(path: Path) -> np.ndarray:
    return blosc2.open(urlpath=str(path), mode="r")[:]


def assert_same_content(first: Any, second: Any) -> None:
    if isinstance(first, Mapping):
        assert list(first) == list(second)
        for key in first:
            assert_same_content(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same_content(one, other)
    elif isinstance(first, np.ndarray):
        assert np.array_equal(first, second)
    else:
        assert first == second


def test_plans_fingerprint_and_dataset_are_stocks(both):
    for name in (f"{STOCK}.json", "dataset.json"):
        assert json.loads((both.used / name).read_text()) == json.loads((both.untouched / name).read_text()), name
    again, stock = (
        json.loads(text)
        for text in (
            (both.used / "Again.json").read_text().replace("Again", STOCK),
            (both.untouched / f"{STOCK}.json").read_text(),
        )
    )
    assert again == stock
    ours, stock = (json.loads((f / "dataset_fingerprint.json").read_text()) for f in (both.used, both.untouched))
    assert {key: ours[key] for key in stock} == stock
    assert set(ours) - set(stock) == {
        "global_intensity_properties_per_channel",
        "unlabeled_spacings",
        "unlabeled_shapes_after_crop",
    }


def test_preprocessed_cases_are_stocks(both):
    names = sorted(path.name for path in (both.untouched / CASES).iterdir())
    assert len(names) == 15  # image, labels and properties of five cases
    assert sorted(path.name for path in (both.used / CASES).iterdir()) == names
    for name in names:
        first, second = both.used / CASES / name, both.untouched / CASES / name
        if name.endswith(".b2nd"):
            one, other = decode(first), decode(second)
            assert one.dtype == other.dtype
            assert np.array_equal(one, other), name
        else:
            assert_same_content(*(np.load(path, allow_pickle=True) for path in (first, second)))


def test_ground_truth_is_stocks(both):
    names = sorted(path.name for path in (both.untouched / "gt_segmentations").iterdir())
    assert sorted(path.name for path in (both.used / "gt_segmentations").iterdir()) == names
    for name in names:
        first, second = (folder / "gt_segmentations" / name for folder in (both.used, both.untouched))
        assert first.read_bytes() == second.read_bytes()


def test_ours_lies_beside_it_under_names_of_its_own(both):
    ours = {path.name for path in both.used.iterdir()} - {path.name for path in both.untouched.iterdir()}
    hidden = {name for name in ours if name.startswith(".")}
    assert all(name.endswith(".lock") for name in hidden)
    assert ours - hidden == {
        "Again.json",  # stock plans that this test asked for
        "fingerprint_cases",
        "SemiSupervisedPlans.json",
        "SemiSupervisedPlans_3d_fullres",
        "SemiSupervisedPlans_3d_fullres_unlabeled",
        f"{CASES}_unlabeled",
    }


def test_ours_writes_none_of_stocks_files_again(both):
    assert written_at(both.used) == both.written


def test_unlabelled_cases_for_stock_plans(both):
    folder = both.used / f"{CASES}_unlabeled"
    assert both.unlabelled_report.strip() == (
        f"3d_fullres: 4 preprocessed, 0 up to date, 0 removed, 0 failed, in {folder}"
    )
    assert sorted(path.stem for path in folder.glob("*.b2nd")) == ["extra_0", "extra_1", "extra_2", "extra_9"]
    plans = PlansManager(str(both.used / f"{STOCK}.json"))
    dataset_json = json.loads((both.used / "dataset.json").read_text())
    for number in (0, 1, 2):
        files = sorted((both.workspace.raw / "imagesUnlabeled").glob(f"extra_{number}_*.nii.gz"))
        configuration = plans.get_configuration("3d_fullres")
        expected = DefaultPreprocessor(verbose=False).run_case(
            [str(file) for file in files], None, plans, configuration, dataset_json
        )[0]
        found = decode(folder / f"extra_{number}.b2nd")
        assert np.array_equal(found, expected)
        assert np.isfinite(found).all()
        assert found.std() > 0.1


def make_stock_model(both: Both, results: Path) -> Path:
    """Write a model as a stock training would have, with random weights."""
    plans = json.loads((both.used / f"{STOCK}.json").read_text())
    configuration = plans["configurations"]["3d_fullres"]
    architecture = configuration["architecture"]
    architecture["arch_kwargs"]["features_per_stage"] = [4] * architecture["arch_kwargs"]["n_stages"]
    dataset = json.loads((both.used / "dataset.json").read_text())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = get_network_from_plans(
            *(architecture[key] for key in ("network_class_name", "arch_kwargs", "_kw_requires_import")),
            *(len(dataset["channel_names"]), len(dataset["labels"])),
            allow_init=True,
            deep_supervision=False,
        )
    model = results / both.workspace.dataset / f"nnUNetTrainer__{STOCK}__3d_fullres"
    (model / "fold_0").mkdir(parents=True)
    (model / "plans.json").write_text(json.dumps(plans))
    (model / "dataset.json").write_text(json.dumps(dataset))
    checkpoint = {
        "network_weights": network.state_dict(),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres"},
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(checkpoint, model / "fold_0" / "checkpoint_final.pth")
    return model


def test_stock_prediction_and_stock_errors_are_the_same_with_and_without_the_plugin(both, tmp_path):
    make_stock_model(both, tmp_path / "results")
    workspace = replace(both.workspace, variables={"nnUNet_results": str(tmp_path / "results")})
    errors = []
    for name, variables in (("with", {}), ("without", OFF)):
        model = ("-d", workspace.number, "-p", STOCK, "-c", "3d_fullres", "-f", 0)
        error, done = workspace.run_in_turn(
            workspace.train("3d_fullres", trainer="nnUNetTrainerNobodyWrote"),
            workspace.predict(tmp_path / name, *model, "-npp", 1, "-nps", 1),
            **variables,
        )
        assert done.status == 0, done.output
        assert error.status == 1
        assert error.output.count("Traceback") == 1
        errors.append(error.last_line)
    assert errors[0] == errors[1]
    for number in range(2):
        first, second = (tmp_path / name / f"test_{number}" for name in ("with", "without"))
        one, other = (SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(f"{path}.nii.gz")) for path in (first, second))
        assert np.array_equal(one, other)
        assert len(np.unique(one)) > 1
        assert np.array_equal(*(np.load(f"{path}.npz")["probabilities"] for path in (first, second)))

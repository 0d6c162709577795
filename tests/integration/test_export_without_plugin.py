"""Exported models predict where the plugin cannot be imported, voxel for voxel the same."""

import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from integration.without_plugin import WITHOUT_PLUGIN

pytestmark = pytest.mark.integration

PLANS = "SemiSupervisedPlans"
PRIVATE = "archive_of_Jane_Doe"


@dataclass(frozen=True)
class Exported:
    """Exported models, and what they predict without the plugin."""

    single: Path
    both: Path
    predictions: Path


@pytest.fixture(scope="module")
def without_plugin(trained, tmp_path_factory):
    """The workspace with an environment in which nnunet_ext cannot be imported."""
    folder = tmp_path_factory.mktemp("without")
    path = trained.workspace.environment()["PYTHONPATH"]
    usual = (Path(path.split(os.pathsep)[0]) / "sitecustomize.py").read_text()  # Python imports the first one alone
    (folder / "sitecustomize.py").write_text(usual + WITHOUT_PLUGIN)
    path = os.pathsep.join([str(folder), path])
    variables = {"PYTHONPATH": path, "NNUNET_EXT_DISABLE": "1", "nnUNet_results": str(folder / "results")}
    return replace(trained.workspace, variables=variables)


@pytest.fixture(scope="module")
def exported(trained, without_plugin, tmp_path_factory) -> Exported:
    folder, predictions = tmp_path_factory.mktemp("exported"), tmp_path_factory.mktemp("predictions")
    single, both, archive = folder / "single", folder / "both", folder / "model.zip"
    export = ("nnUNetv2_ext", "export", "-m", trained.model)
    done = trained.workspace.run_in_turn(
        (*export, "-o", single, "--stock"), (*export, "-o", both, "--network", "both"), (*export, "-o", archive)
    )
    assert [each.status for each in done] == [0, 0, 0], done
    assert done[0].output.splitlines()[-1] == (
        f"Predict with: nnUNetv2_predict_from_modelfolder -i IMAGES -o PREDICTIONS -m {single} -f 0"
    )
    workers = ("-npp", 1, "-nps", 1)
    stock = ("-d", trained.workspace.number, "-p", PLANS, "-c", "3d_tiny", "-f", 0)
    Path(without_plugin.environment()["nnUNet_results"]).mkdir()
    done = without_plugin.run_in_turn(
        without_plugin.predict(predictions / "1", "-f", 0, *workers, model=single),
        without_plugin.predict(predictions / "2", "-f", 1, *workers, model=both),
        without_plugin.predict(predictions / "both", "-f", 0, 1, *workers, model=both),
        ("nnUNetv2_install_pretrained_model_from_zip", archive),
        without_plugin.predict(predictions / "zip", *stock, "-npp", 0, "-nps", 0),
    )
    assert [each.status for each in done] == [0] * 5, done
    return Exported(single, both, predictions)


def segmentation(folder: Path, number: int) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(folder / f"test_{number}.nii.gz")))


def probabilities(folder: Path, number: int) -> np.ndarray:
    return np.load(folder / f"test_{number}.npz")["probabilities"]


def assert_same_predictions(first: Path, second: Path) -> None:
    for number in range(2):
        assert np.array_equal(segmentation(first, number), segmentation(second, number))
        assert np.array_equal(probabilities(first, number), probabilities(second, number))


def test_plugin_is_really_missing_also_in_spawned_workers(without_plugin):
    code = (
        "import multiprocessing, sys, importlib\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        try:\n"
        "            pool.apply(importlib.import_module, ('nnunet_ext',))\n"
        "        except ModuleNotFoundError as error:\n"
        "            print('worker:', error)\n"
        "    import nnunet_ext\n"
    )
    done = without_plugin.call(sys.executable, "-c", code, status=1, real_spawn=True)
    assert "worker: No module named 'nnunet_ext'" in done.output
    assert done.last_line == "ModuleNotFoundError: No module named 'nnunet_ext'"


def test_network_1_predicts_the_same_without_the_plugin(predicted, exported):
    assert_same_predictions(predicted, exported.predictions / "1")


def test_archive_is_installed_and_found_by_stock_nnunet(predicted, exported):
    assert_same_predictions(predicted, exported.predictions / "zip")


def test_both_is_the_average_of_the_two(exported):
    for number in range(2):
        first, second, both = (probabilities(exported.predictions / name, number) for name in ("1", "2", "both"))
        # stock nnU-Net averages the logits of folds, in half precision: the normalised geometric mean of probabilities
        mean = np.sqrt(first * second)
        mean /= mean.sum(0)
        assert np.abs(first - second).max() > 0.1
        assert np.abs(both - mean).max() < 5e-3
        clear = np.diff(np.sort(mean, 0)[-2:], axis=0)[0] > 1e-2
        assert clear.mean() > 0.5
        assert np.array_equal(segmentation(exported.predictions / "both", number)[clear], mean.argmax(0)[clear])


def test_both_predicts_the_same_with_the_plugin(trained, exported, tmp_path):
    command = trained.workspace.predict(tmp_path, "-f", 0, 1, "-npp", 1, "-nps", 1, model=exported.both)
    trained.workspace.run(*command)
    assert_same_predictions(tmp_path, exported.predictions / "both")


def test_exported_folders_name_no_patient_and_no_class_of_ours(exported):
    for model, folds in ((exported.single, ["fold_0"]), (exported.both, ["fold_0", "fold_1"])):
        assert sorted(path.name for path in model.glob("fold_*")) == folds
        files = sorted(path for path in model.rglob("*") if path.is_file())
        assert {path.name for path in files} == {
            *(
                "checkpoint_final.pth",
                "dataset.json",
                "dataset_fingerprint.json",
                "plans.json",
                "nnunet_ext_export.json",
            )
        }
        for path in files:
            content = path.read_bytes()
            assert PRIVATE.encode() not in content
            assert b"ARCHIVE" not in content
            assert b"nnunet_ext" not in content
            assert b"SemiSupervisedPreprocessor" not in content
        assert "unlabeled" not in json.loads((model / "dataset.json").read_text())

import copy
import json
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from data.tiny_dataset import LABELS, NAME, TinyDataset, architecture, make_plans
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.model_sharing.model_import import install_model_from_zip_file
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_ext import files
from nnunet_ext.files import PREFIX, DiskFullError
from nnunet_ext.model_sharing.export import export_model
from nnunet_ext.model_sharing.folders import find_folds
from nnunet_ext.trainers import nnUNetTrainerCPS
from nnunet_ext.training.architecture import NESTED, SECOND, build
from nnunet_ext.training.checkpoints import SECOND_NETWORK

PLANS = make_plans("SemiSupervisedPlans", preprocessor_name="SemiSupervisedPreprocessor")
PRIVATE = "/clinic/DOE_JANE"
DATASET_JSON = {
    "channel_names": {"0": "CT"},
    "labels": LABELS,
    "numTraining": 2,
    "file_ending": ".nii.gz",
    "unlabeled": {"DOE_JANE": {"images": [f"{PRIVATE}.nii.gz"]}},
    "dataset": {"DOE_JANE2": {"images": [f"{PRIVATE}2.nii.gz"], "label": f"{PRIVATE}2_label.nii.gz"}},
}
EXPORTED_NAME = f"{NAME}/nnUNetTrainer__SemiSupervisedPlans__3d_fullres"
AXES = (1,)


def make_network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    manager = PlansManager(PLANS)
    configuration = manager.get_configuration("3d_fullres")
    return nnUNetTrainer.build_network_architecture(manager, configuration, 1, 2, enable_deep_supervision=False).eval()


def checkpoint(first: nn.Module, second: nn.Module | None) -> dict:
    """Return a checkpoint with the keys that our trainers write."""
    optimizer = torch.optim.SGD(first.parameters(), 1e-2, momentum=0.99, nesterov=True)
    content = {
        "network_weights": first.state_dict(),
        "optimizer_state": optimizer.state_dict(),
        "grad_scaler_state": None,
        "logging": {
            "mean_fg_dice": [np.float64(0.5)],
            "train_losses": [np.float32(0.1)],
            "dice_per_class_or_region": [[np.float64(0.5)]],
            "epoch_end_timestamps": [1.5],
        },
        "_best_ema": np.float64(0.5),
        "current_epoch": 1,
        "init_args": {
            "plans": PLANS,
            "configuration": "3d_fullres",
            "fold": 0,
            "dataset_json": DATASET_JSON,
            "device": torch.device("cpu"),
        },
        "trainer_name": "nnUNetTrainerCPS",
        "inference_allowed_mirroring_axes": AXES,
    }
    if second is not None:
        content["nnunet_ext_cps"] = {
            "network_weights": second.state_dict(),
            "optimizer_state": optimizer.state_dict(),
            "lr_schedulers": [{"initial_lr": 0.01}, {"initial_lr": 0.01}],
            "monitor": [0],
        }
    return content


@dataclass
class Model:
    folder: Path
    networks: dict[tuple[int, str], nn.Module]


@pytest.fixture
def model(tiny: TinyDataset) -> Model:
    """A trained model of folds 0 and 3, two networks each."""
    folder = tiny.results / NAME / "nnUNetTrainerCPS__SemiSupervisedPlans__3d_fullres"
    networks = {}
    for fold in (0, 3):
        (folder / f"fold_{fold}").mkdir(parents=True)
        networks[fold, "1"], networks[fold, "2"] = make_network(10 + fold), make_network(20 + fold)
        content = checkpoint(networks[fold, "1"], networks[fold, "2"])
        torch.save(content, folder / f"fold_{fold}" / "checkpoint_final.pth")
    (folder / "plans.json").write_text(json.dumps(PLANS))
    (folder / "dataset.json").write_text(json.dumps(DATASET_JSON))
    (folder / "dataset_fingerprint.json").write_text("{}")
    return Model(folder, networks)


def weights(exported: Path, fold: int | str) -> dict[str, torch.Tensor]:
    return torch.load(exported / f"fold_{fold}" / "checkpoint_final.pth", weights_only=True)["network_weights"]


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def stock_predictor(use_gaussian: bool = True) -> nnUNetPredictor:
    return nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, use_gaussian=use_gaussian)


def predict_with(network: nn.Module, image: torch.Tensor, use_gaussian: bool = True) -> torch.Tensor:
    """Predict with a network of ours in this process, as the final validation of a training does."""
    predictor = stock_predictor(use_gaussian)
    manager = PlansManager(PLANS)
    configuration = manager.get_configuration("3d_fullres")
    predictor.manual_initialization(network, manager, configuration, None, DATASET_JSON, "x", AXES)
    return predictor.predict_sliding_window_return_logits(image)


@pytest.mark.parametrize("network", ["1", "2"])
def test_one_network_keeps_the_folds(model: Model, tmp_path, network):
    assert export_model(model.folder, tmp_path / "out", network) == [0, 3]
    for fold in (0, 3):
        assert same(weights(tmp_path / "out", fold), model.networks[fold, network].state_dict())


def test_both_networks_become_folds_counted_from_0(model: Model, tmp_path):
    assert export_model(model.folder, tmp_path / "out", "both") == [0, 1, 2, 3]
    for number, key in enumerate([(0, "1"), (0, "2"), (3, "1"), (3, "2")]):
        assert same(weights(tmp_path / "out", number), model.networks[key].state_dict())


def test_chosen_folds(model: Model, tmp_path):
    assert export_model(model.folder, tmp_path / "out", "both", folds=[3]) == [0, 1]
    assert same(weights(tmp_path / "out", 1), model.networks[3, "2"].state_dict())
    assert export_model(model.folder, tmp_path / "out", "1", folds=[3], overwrite=True) == [3]
    assert sorted(p.name for p in (tmp_path / "out").glob("fold_*")) == ["fold_3"]


def test_fold_all_and_another_checkpoint(model: Model, tmp_path):
    shutil.move(model.folder / "fold_3", model.folder / "fold_all")
    (model.folder / "fold_all" / "checkpoint_final.pth").rename(model.folder / "fold_all" / "checkpoint_best.pth")
    assert export_model(model.folder, tmp_path / "out", checkpoint_name="checkpoint_best.pth") == ["all"]
    # The file has the name that stock prediction looks for.
    assert same(weights(tmp_path / "out", "all"), model.networks[3, "1"].state_dict())


@pytest.mark.parametrize("network", ["1", "2", "both"])
def test_stock_prediction_equals_that_of_the_trained_networks(model: Model, tmp_path, network):
    export_model(model.folder, tmp_path / "out", network, folds=[0])
    predictor = stock_predictor()
    predictor.initialize_from_trained_model_folder(str(tmp_path / "out"), None, "checkpoint_final.pth")
    assert predictor.trainer_name == "nnUNetTrainer"
    assert predictor.configuration_manager.preprocessor_name == "DefaultPreprocessor"
    assert predictor.allowed_mirroring_axes == AXES
    image = torch.randn(1, 16, 20, 16, generator=torch.Generator().manual_seed(1))  # two windows
    found = predictor.predict_logits_from_preprocessed_data(image)
    assert tuple(found.shape) == (2, 16, 20, 16)
    first, second = model.networks[0, "1"], model.networks[0, "2"]
    if network == "both":
        expected = (predict_with(first, image) + predict_with(second, image)) / 2
        assert torch.equal(found, expected)
    else:
        assert torch.equal(found, predict_with(first if network == "1" else second, image))
        assert not torch.equal(found, predict_with(second if network == "1" else first, image))


def test_a_checkpoint_of_a_real_training_can_be_exported(tiny: TinyDataset, tmp_path):
    tiny.write_splits({"train": ["a"], "val": ["b"]})
    folder = tiny.preprocessed / "SemiSupervisedPlans_3d_fullres"
    folder.mkdir()
    for name in "ab":
        image, label = np.zeros((1, 16, 16, 16), np.float32), np.zeros((1, 16, 16, 16), np.int8)
        parts = [image.shape] * 4  # chunks and blocks of both
        nnUNetDatasetBlosc2.save_case(image, label, {"class_locations": {1: []}}, str(folder / name), *parts)
    plans = make_plans("SemiSupervisedPlans", stages=3) | {"continue_training": False}
    trainer = nnUNetTrainerCPS(plans, "3d_fullres", 0, dict(DATASET_JSON), torch.device("cpu"))
    trainer.initialize()
    trainer.logger.log("train_losses", np.float32(0.5), 0)
    trainer.logger.log("dice_per_class_or_region", [np.float64(0.5)], 0)
    fold = Path(trainer.output_folder)
    trainer.save_checkpoint(str(fold / "checkpoint_final.pth"))
    (fold.parent / "plans.json").write_text(json.dumps(make_plans("SemiSupervisedPlans", stages=3)))
    (fold.parent / "dataset.json").write_text(json.dumps(DATASET_JSON))
    assert export_model(fold.parent, tmp_path / "out", "both") == [0, 1]
    assert same(weights(tmp_path / "out", 0), trainer.network.state_dict())
    assert same(weights(tmp_path / "out", 1), trainer.network_2.state_dict())


@pytest.mark.parametrize("network", ["1", "both"])
def test_nothing_private_and_nothing_of_the_training_is_exported(model: Model, tmp_path, network):
    export_model(model.folder, tmp_path / "out", network)
    files = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert len(files) == 4 + (2 if network == "1" else 4)
    for file in files:
        assert b"DOE_JANE" not in file.read_bytes()
    exported = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert exported == {k: v for k, v in DATASET_JSON.items() if k not in ("unlabeled", "dataset")}
    plans = json.loads((tmp_path / "out" / "plans.json").read_text())
    assert plans["configurations"]["3d_fullres"]["preprocessor_name"] == "DefaultPreprocessor"
    content = torch.load(tmp_path / "out" / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert content.pop("network_weights")
    assert content == {
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres"},
        "inference_allowed_mirroring_axes": AXES,
    }
    assert b"DOE_JANE" in (model.folder / "fold_0" / "checkpoint_final.pth").read_bytes()  # the test could fail


def test_archive_is_laid_out_for_stock_installation(model: Model, tiny: TinyDataset, tmp_path):
    assert export_model(model.folder, tmp_path / "new" / "model.zip", "both", folds=[0]) == [0, 1]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["model.zip"]
    with zipfile.ZipFile(tmp_path / "new" / "model.zip") as archive:
        assert sorted(archive.namelist()) == [
            f"{EXPORTED_NAME}/dataset.json",
            f"{EXPORTED_NAME}/dataset_fingerprint.json",
            f"{EXPORTED_NAME}/fold_0/checkpoint_final.pth",
            f"{EXPORTED_NAME}/fold_1/checkpoint_final.pth",
            f"{EXPORTED_NAME}/nnunet_ext_export.json",
            f"{EXPORTED_NAME}/plans.json",
        ]
    install_model_from_zip_file(str(tmp_path / "new" / "model.zip"))
    predictor = stock_predictor()
    predictor.initialize_from_trained_model_folder(str(tiny.results / EXPORTED_NAME), (0, 1), "checkpoint_final.pth")
    assert same(predictor.list_of_parameters[1], model.networks[0, "2"].state_dict())


@pytest.mark.parametrize("name", ["out", "out.zip"])
def test_what_is_there_is_replaced_only_if_asked_for(model: Model, tmp_path, name):
    output = tmp_path / name
    export_model(model.folder, output, folds=[0])
    before = output.stat().st_mtime_ns
    with pytest.raises(FileExistsError, match=r"exists; pass --overwrite to replace it"):
        export_model(model.folder, output)
    assert output.stat().st_mtime_ns == before
    assert export_model(model.folder, output, folds=[3], overwrite=True) == [3]
    if name == "out":
        assert [p.name for p in output.glob("fold_*")] == ["fold_3"]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith((".export", PREFIX))] == []


def test_an_empty_folder_needs_no_overwrite(model: Model, tmp_path):
    (tmp_path / "out").mkdir()
    assert export_model(model.folder, tmp_path / "out", folds=[0]) == [0]


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_archive_does_not_replace_a_folder(model: Model, tmp_path, overwrite):
    (tmp_path / "out.zip").mkdir()
    with pytest.raises(FileExistsError, match="is a folder; name a file for the archive"):
        export_model(model.folder, tmp_path / "out.zip", overwrite=overwrite)


@pytest.mark.parametrize("up", [0, 1, 2])
def test_the_model_itself_is_never_overwritten(model: Model, up):
    output = [model.folder, *model.folder.parents][up]
    with pytest.raises(ValueError, match="holds the model that is to be exported; name another place"):
        export_model(model.folder, output, overwrite=True)
    assert (model.folder / "fold_3" / "checkpoint_final.pth").is_file()


def test_a_failed_export_leaves_what_was_there(model: Model, tmp_path):
    export_model(model.folder, tmp_path / "out", folds=[0])
    (model.folder / "fold_3" / "checkpoint_final.pth").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="cannot be loaded as a checkpoint"):
        export_model(model.folder, tmp_path / "out", overwrite=True)
    assert same(weights(tmp_path / "out", 0), model.networks[0, "1"].state_dict())
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith((".export", PREFIX))] == []


def test_what_is_missing_is_named(model: Model, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match=r"no fold_1/checkpoint_final.pth; it has the folds \[0, 3\]"):
        export_model(model.folder, out, folds=[0, 1])
    with pytest.raises(FileNotFoundError, match=r"no fold of .* has checkpoint_best.pth; .* -chk"):
        export_model(model.folder, out, checkpoint_name="checkpoint_best.pth")
    (model.folder / "dataset.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"dataset.json is missing; expected a model folder"):
        export_model(model.folder, out)
    with pytest.raises(FileNotFoundError, match=r"plans.json is missing|there is no model folder"):
        export_model(model.folder.parent / "nowhere", out)
    assert not out.exists()


@pytest.mark.parametrize("network", ["2", "both"])
def test_a_model_without_a_second_network(model: Model, tmp_path, network):
    path = model.folder / "fold_0" / "checkpoint_final.pth"
    torch.save(checkpoint(model.networks[0, "1"], None) | {"trainer_name": "nnUNetTrainer_20epochs"}, path)
    with pytest.raises(ValueError, match=r"\(of nnUNetTrainer_20epochs\) has no second network; .* --network 1"):
        export_model(model.folder, tmp_path / "out", network, folds=[0])
    assert export_model(model.folder, tmp_path / "out", "1", folds=[0]) == [0]


def test_an_architecture_that_stock_does_not_have(model: Model, tmp_path):
    plans = make_plans("SemiSupervisedPlans", architecture=architecture(3, 2) | {"network_class_name": "my.Network"})
    (model.folder / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(ValueError, match=r"model of nnUNetTrainerCPS uses the architecture my.Network, which plain"):
        export_model(model.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class RunsCode:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_a_checkpoint_with_code_is_refused_and_not_run(model: Model, tmp_path):
    evil = checkpoint(model.networks[0, "1"], None) | {"logging": RunsCode(tmp_path / "ran")}
    torch.save(evil, model.folder / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(ValueError, match="cannot be loaded as a checkpoint of weights and plain values"):
        export_model(model.folder, tmp_path / "out")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


FOREIGN = (
    r"has no nnunet_ext_export\.json, .*and --overwrite replaces only what nnUNetv2_ext export wrote; remove it by"
)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("inside", ["fold_0", "fold_7", "fold_0/exported", "model.zip"])
def test_nothing_inside_the_model_is_written(model: Model, inside):
    before = contents(model.folder)
    with pytest.raises(ValueError, match=f"{inside} lies inside the model .* that is to be exported; name another"):
        export_model(model.folder, model.folder / inside, overwrite=True)
    assert contents(model.folder) == before


@pytest.mark.parametrize("name", ["raw", "note.zip", "note", "archive.zip"])
def test_what_no_export_wrote_is_never_replaced(model: Model, tmp_path, name):
    (tmp_path / "there" / "raw").mkdir(parents=True)
    (tmp_path / "there" / "raw" / "a_0000.nii.gz").write_bytes(b"irreplaceable")
    (tmp_path / "there" / "note.zip").write_text("mine")
    (tmp_path / "there" / "note").write_text("mine")
    with zipfile.ZipFile(tmp_path / "there" / "archive.zip", "w") as archive:
        archive.writestr("thesis.txt", "mine")
    before = contents(tmp_path / "there")
    with pytest.raises(FileExistsError, match=FOREIGN):
        export_model(model.folder, tmp_path / "there" / name, overwrite=True)
    assert contents(tmp_path / "there") == before


@pytest.mark.parametrize("change", ["a file more", "another checkpoint", "a link"])
def test_what_was_added_to_an_export_is_not_lost(model: Model, tmp_path, change):
    output = tmp_path / "out"
    export_model(model.folder, output, folds=[0])
    checkpoint = output / "fold_0" / "checkpoint_final.pth"
    if change == "a file more":
        (output / "fold_0" / "progress.png").write_bytes(b"trained here")
    elif change == "another checkpoint":
        torch.save({"trained": "here"}, checkpoint)
    else:
        moved = shutil.move(checkpoint, tmp_path / "elsewhere.pth")
        checkpoint.symlink_to(moved)
    before = contents(output)
    with pytest.raises(FileExistsError, match=r"out holds fold_0/.*, which was put there or changed since, and"):
        export_model(model.folder, output, overwrite=True)
    assert contents(output) == before


def test_an_export_of_a_version_without_a_record_is_removed_by_hand(model: Model, tmp_path):
    export_model(model.folder, tmp_path / "out", folds=[0])
    (tmp_path / "out" / "nnunet_ext_export.json").unlink()
    with pytest.raises(FileExistsError, match=FOREIGN):
        export_model(model.folder, tmp_path / "out", overwrite=True)


def test_an_ending_in_capital_letters_makes_an_archive(model: Model, tmp_path):
    for overwrite in (False, True):
        export_model(model.folder, tmp_path / "model.ZIP", folds=[0], overwrite=overwrite)
        assert f"{EXPORTED_NAME}/plans.json" in zipfile.ZipFile(tmp_path / "model.ZIP").namelist()


def test_a_link_to_a_folder_stays_a_link(model: Model, tmp_path):
    (tmp_path / "disk" / "out").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "out")
    assert export_model(model.folder, tmp_path / "out", folds=[0]) == [0]
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk" / "out" / "plans.json").is_file()


@pytest.mark.parametrize("key", ["dataset_name", "plans_name"])
@pytest.mark.parametrize("name", ["../../../evil", "a/b", "..", "", "C:\\x", None])
def test_names_that_lead_out_of_the_archive(model: Model, tmp_path, key, name):
    (model.folder / "plans.json").write_text(json.dumps(PLANS | {key: name}))
    with pytest.raises(ValueError, match=rf"plans.json has {key} .*, expected the plain name of a folder; correct"):
        export_model(model.folder, tmp_path / "model.zip")
    assert not (tmp_path / "model.zip").exists()


def test_weights_that_do_not_fit_the_plans(model: Model, tmp_path):
    file = model.folder / "fold_3" / "checkpoint_final.pth"
    whole = checkpoint(model.networks[3, "1"], None)
    weights = whole["network_weights"]
    key = "decoder.seg_layers.0.weight"
    shape = list(weights[key].shape)
    for changed, difference in (
        ({k: v for k, v in weights.items() if k != key}, f"lacks {key}"),
        (weights | {"head.weight": torch.zeros(1)}, "has head.weight, which is one too many"),
        (weights | {key: torch.zeros(7, *shape[1:])}, rf"has {key} of the shape \(7, .*, expected \(2, "),
        (weights | {key: "no tensor"}, rf"has {key} of the shape \(\), expected \(2, "),
    ):
        torch.save(whole | {"network_weights": changed}, file)
        with pytest.raises(ValueError, match=rf"{file} {difference}.*network_weights are not those of the network"):
            export_model(model.folder, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_full_disk_is_named_and_leaves_nothing(model: Model, tmp_path, monkeypatch):
    def full(*_):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr(files, "_free_bytes", lambda _: 0)
    with pytest.raises(DiskFullError, match=r"checkpoint_final\.pth cannot be written .*no room on its disk"):
        export_model(model.folder, tmp_path / "place" / "out")
    assert list((tmp_path / "place").iterdir()) == []


def test_what_appears_meanwhile_is_not_replaced(model: Model, tmp_path, monkeypatch):
    original, output = torch.save, tmp_path / "out"

    def save(*arguments):
        original(*arguments)
        output.mkdir(exist_ok=True)
        (output / "notes.txt").write_text("mine")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(FileExistsError, match="out exists; pass --overwrite"):
        export_model(model.folder, output, folds=[0])
    assert [path.name for path in output.iterdir()] == ["notes.txt"]


def test_what_a_killed_export_left_is_swept(model: Model, tmp_path):
    left = tmp_path / f"{PREFIX}{files._machine()}_999999999_0_out"
    left.mkdir()
    export_model(model.folder, tmp_path / "out", folds=[0])
    assert not left.exists()


def test_plans_that_are_no_json(model: Model, tmp_path):
    (model.folder / "plans.json").write_text('{"dataset_name": ')
    with pytest.raises(ValueError, match=r"plans.json is no JSON \(line 1, .*; expected a model folder written by"):
        export_model(model.folder, tmp_path / "out")


def test_what_was_added_to_an_archive_is_not_lost(model: Model, tmp_path):
    export_model(model.folder, tmp_path / "m.zip", folds=[0])
    export_model(model.folder, tmp_path / "m.zip", folds=[0], overwrite=True)
    with zipfile.ZipFile(tmp_path / "m.zip", "a") as archive:
        archive.writestr("mine.txt", "mine")
    with pytest.raises(FileExistsError, match=r"m\.zip holds mine\.txt, which was put there or changed since, and"):
        export_model(model.folder, tmp_path / "m.zip", overwrite=True)


def test_only_folds_that_nnunet_writes_are_folds(model: Model):
    for name in ("+1", "01", "0_backup", "\u00b2"):
        shutil.copytree(model.folder / "fold_0", model.folder / f"fold_{name}")
    assert find_folds(model.folder, None, "checkpoint_final.pth") == [0, 3]


class TestPairs:
    """Models of networks of two kinds; the second one is smaller."""

    @pytest.fixture
    def pair(self, model: Model):
        file = model.folder / "plans.json"
        plans = json.loads(file.read_text())
        other = copy.deepcopy(plans["configurations"]["3d_fullres"]["architecture"])
        other["arch_kwargs"]["features_per_stage"] = [3, 5, 7][: other["arch_kwargs"]["n_stages"]]
        plans["configurations"]["3d_fullres"][SECOND] = other
        file.write_text(json.dumps(plans))
        network = build(other, 1, 2, False)
        path = model.folder / "fold_0" / "checkpoint_final.pth"
        content = torch.load(path, weights_only=False)
        content[SECOND_NETWORK] = {"network_weights": network.state_dict()}
        torch.save(content, path)
        return model.folder, network

    def name_nested(self, folder, key):
        plans = json.loads((folder / "plans.json").read_text())
        plans["configurations"]["3d_fullres"][key]["network_class_name"] = NESTED
        (folder / "plans.json").write_text(json.dumps(plans))

    @pytest.mark.parametrize("network", ["1", "2"])
    def test_plans_beside_it_name_what_was_exported(self, pair, model, tmp_path, network):
        folder, second = pair
        exported = json.loads((folder / "plans.json").read_text())["configurations"]["3d_fullres"]
        export_model(folder, tmp_path / "out", network, folds=[0])
        plans = json.loads((tmp_path / "out" / "plans.json").read_text())["configurations"]["3d_fullres"]
        assert SECOND not in plans
        assert plans["architecture"] == exported["architecture" if network == "1" else SECOND]
        predictor = stock_predictor()
        predictor.initialize_from_trained_model_folder(str(tmp_path / "out"), (0,), "checkpoint_final.pth")
        expected = model.networks[0, "1"] if network == "1" else second
        assert same(predictor.list_of_parameters[0], expected.state_dict())

    def test_both_are_no_folds_of_one_model(self, pair, tmp_path):
        text = (
            r"networks of two kinds, so both cannot be folds of one exported model \(network 1 is PlainConvUNet, which "
            r"needs no plugin; network 2 is PlainConvUNet, which needs no plugin\); export it with --network 1, or"
        )
        with pytest.raises(ValueError, match=text):
            export_model(pair[0], tmp_path / "out", "both", folds=[0])
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(("key", "needs", "instead"), [("architecture", "1", "2"), (SECOND, "2", "1")])
    def test_which_one_needs_the_plugin_is_said(self, pair, tmp_path, key, needs, instead):
        self.name_nested(pair[0], key)
        text = (
            rf"so network {needs} needs nnunet_ext \(.*network {needs} is NestedAttentionUNet, which does.*\); export "
            rf"it with --network {instead}, or predict with nnunet_ext installed, by nnUNetv2_predict --network {needs}"
        )
        with pytest.raises(ValueError, match=text):
            export_model(pair[0], tmp_path / "out", needs, folds=[0])
        export_model(pair[0], tmp_path / "out", instead, folds=[0])

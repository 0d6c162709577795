"""Pseudo-labels by the two networks of a CPS training, and stock nnU-Net that trains with them."""

import contextlib
import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from integration.conftest import PLANS, TINY, TRAINER
from integration.without_plugin import WITHOUT_PLUGIN

from nnunet_ext.evaluation.command import find_command

pytestmark = pytest.mark.integration

VALIDATION = Path("fold_0") / "validation" / "summary.json"
# a stock training that is over after two iterations
SHORT = """

class Short:
    def find_spec(self, name, path=None, target=None):
        if name != "nnunetv2.training.nnUNetTrainer.nnUNetTrainer":
            return None
        import importlib.util

        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        original = spec.loader.exec_module

        def exec_module(module):
            original(module)
            trainer = module.nnUNetTrainer
            init = trainer.__init__

            def short(self, plans, configuration, fold, dataset_json, device=module.torch.device("cuda")):
                init(self, plans, configuration, fold, dataset_json, device)
                self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 2, 1

            trainer.__init__ = short

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Short())
"""


@contextlib.contextmanager
def kill_group(workspace, words):
    """Start a command, and kill it and what it started when the block ends."""
    process = subprocess.Popen(
        [find_command(words[0]), *words[1:]],
        env=workspace.environment(),
        cwd=workspace.root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(is_there, process, seconds=600):
    end = time.monotonic() + seconds
    while not is_there():
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.1)


def test_stock_trains_with_pseudo_labels(trained, tmp_path):
    workspace = trained.workspace
    command = ("nnUNetv2_ext", "pseudo_label", "-d", workspace.number, "-m", trained.model, "-o", 915, "--top", 0.5)
    fixed = ("-device", "cpu", "--no_pbar", "-step_size", 1, "--disable_tta", "--uncertain", "ignore")
    done = workspace.run(*command, *fixed)
    assert "fold 0, network 2" in done.output
    new = replace(workspace, dataset="Dataset915_Blobs_pseudo")
    content = json.loads((new.raw / "dataset.json").read_text())
    record = json.loads((new.raw / "pseudo_labels.json").read_text())
    accepted = sorted(record["labels"])
    assert 1 <= len(accepted) <= 2
    assert sorted(content["dataset"]) == sorted([f"case_{n}" for n in range(5)] + accepted)
    listed = (content["dataset"] | content["unlabeled"])["extra_9"]["images"]
    assert listed == ["${ARCHIVE}/extra_9_0000.nii.gz", "${ARCHIVE}/extra_9_0001.nii.gz"]

    path = workspace.environment()["PYTHONPATH"]
    usual = (Path(path.split(os.pathsep)[0]) / "sitecustomize.py").read_text()  # Python imports the first one alone
    (tmp_path / "sitecustomize.py").write_text(usual + WITHOUT_PLUGIN + SHORT)
    stock = replace(new, variables={"PYTHONPATH": os.pathsep.join([str(tmp_path), path]), "NNUNET_EXT_DISABLE": "1"})
    stock.plan_and_preprocess("ExperimentPlanner", more=("--verify_dataset_integrity",))
    stock.add_small_configurations("nnUNetPlans")
    done = stock.run(*stock.train(TINY, trainer="nnUNetTrainer", plans="nnUNetPlans"))
    model = stock.model("nnUNetTrainer", TINY, "nnUNetPlans")
    summary = json.loads((model / "fold_0" / "validation" / "summary.json").read_text())
    validated = {Path(case["prediction_file"]).name.partition(".")[0] for case in summary["metric_per_case"]}
    splits = json.loads((stock.preprocessed / "splits_final.json").read_text())
    assert validated == set(splits[0]["val"])
    assert all(name.startswith("case_") for name in validated)
    assert set(accepted) < set(splits[0]["train"])
    assert f"This split has {len(splits[0]['train'])} training and 1 validation cases." in done.output


def test_self_training_goes_on_after_a_kill(trained):
    """Cycle 0 is the training that is there; its student learns from true labels and pseudo-labels."""
    workspace, student = trained.workspace, "nnUNetTrainer_2epochs_2iterations"
    command = ("nnUNetv2_ext", "self_train", "-d", workspace.number, "-c", TINY, "-tr", TRAINER, "--student", student)
    wanted = ("-p", PLANS, "-f", 0, "--cycles", 1, "-o", 917, "--top", 0.5, "-step_size", 1, "--disable_tta")
    where = ("-device", "cpu", "-np", 1, "--no_pbar")
    words = [str(word) for word in (*command, *wanted, *where)]
    folder = trained.model.parent / "self_train"
    with kill_group(workspace, words) as process:
        wait_for(lambda: (folder / "logs" / "cycle1_preprocess.log").is_file(), process)
    done = workspace.run(*words)
    for step in ("cycle 0: done", "cycle 1: pseudo label: done", "cycle 1: plans: done"):
        assert step in done.output
    record = json.loads((folder / "self_train.json").read_text())
    model = Path(record["cycles"][1]["model"])
    assert model == workspace.model(student).parents[1] / "Dataset917_Blobs_pseudo" / workspace.model(student).name
    first, second = (json.loads((Path(m) / VALIDATION).read_text()) for m in (trained.model, model))
    assert len(first["metric_per_case"]) == len(second["metric_per_case"]) == 1
    assert record["cycles"][0]["dice"] == pytest.approx(first["foreground_mean"]["Dice"])
    assert record["cycles"][1]["dice"] == pytest.approx(second["foreground_mean"]["Dice"])
    assert record["cycles"][1]["pseudo_labels"] == 2
    assert (folder / "self_train.png").is_file()
    assert f"Best: cycle {record['best']}" in done.output
    assert "nothing is left to do" in workspace.run(*words, "--dry_run").output

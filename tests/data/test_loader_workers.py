"""Loader processes end with the training that started them, however it ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

TRAINING = """
import sys, time
from pathlib import Path

import psutil, torch
from reference import tiny

from nnunet_ext.trainers.names import find_trainer

if __name__ == "__main__":
    tiny.make(Path(sys.argv[1]), configurations=("3d_fullres",))
    plans = tiny.plans() | {"continue_training": False}
    trainer = find_trainer(sys.argv[2])(plans, "3d_fullres", 0, tiny.dataset_json(), torch.device("cpu"))
    trainer.initialize()
    trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
    print("workers", *(child.pid for child in psutil.Process().children(recursive=True)), flush=True)
    time.sleep(600)
"""


@pytest.fixture
def training(tmp_path):
    """Start a training up to its loaders; return its process and the processes that load."""
    started = []

    def start(name):
        script = tmp_path / "training.py"
        script.write_text(TRAINING)
        tests = Path(__file__).parents[1]
        folders = {f"nnUNet_{name}": str(tmp_path / name) for name in ("raw", "preprocessed", "results")}
        environment = os.environ | folders | {"nnUNet_n_proc_DA": "2", "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
        process = subprocess.Popen(
            [sys.executable, str(script), str(tmp_path), name], stdout=subprocess.PIPE, text=True, env=environment
        )
        started.append(process)
        line = next(line for line in process.stdout if line.startswith("workers"))
        workers = [psutil.Process(int(pid)) for pid in line.split()[1:]]
        started.extend(workers)
        return process, workers

    yield start
    for process in started:
        try:
            process.kill()
            process.wait(30)
        except psutil.NoSuchProcess:
            pass
    started[0].stdout.close()


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
@pytest.mark.parametrize(("name", "how"), [("nnUNetTrainerCPS", signal.SIGKILL), ("nnUNetTrainerCWCD", signal.SIGTERM)])
def test_loader_processes_end_with_a_killed_training(training, name, how):
    process, workers = training(name)
    assert len(workers) == 3  # two for training, one for validation
    process.send_signal(how)
    process.wait(30)
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []


def test_nnunets_loaders_are_left_as_they_were(monkeypatch):
    from batchgenerators.dataloading import nondet_multi_threaded_augmenter as stock

    from nnunet_ext.data.loaders import workers_that_end_with_this_process

    before = stock.producer
    with workers_that_end_with_this_process():
        assert stock.producer is not before
    assert stock.producer is before
    with pytest.raises(KeyError), workers_that_end_with_this_process():
        raise KeyError
    assert stock.producer is before

"""Stages of a run side by side, by events: each waits for another one to be under way."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import nnunet_ext.inference.prediction_run as prediction_run
from nnunet_ext.inference.case import Prepared
from nnunet_ext.inference.prediction_run import Run, Task
from nnunet_ext.inference.writing import Exported

PATIENCE = 30  # seconds; a stage that is never under way fails the test


class OneHead:
    """Plans of which only the number of classes is asked for."""

    def get_label_manager(self, _):
        return SimpleNamespace(num_segmentation_heads=1)


def prepare_and_note(source, previous, rule, model):
    (Path(source[0]) / source[1]).touch()
    return Prepared(np.zeros((1, 4, 4, 4), np.float32), {}, None, [], {"seconds": {}, "peak_memory_mib": {}})


class ThreeStages:
    """A predictor whose network waits until the next case is being prepared."""

    allow_tqdm, export_device, rule, prepare_case = False, torch.device("cpu"), None, staticmethod(prepare_and_note)
    model_of_cases = SimpleNamespace(plans=OneHead(), dataset_json={})

    def __init__(self, folder, number):
        self.dataset_json = {"file_ending": ".nii.gz"}
        self.folder, self.number = folder, number
        self.begun = [threading.Event() for _ in range(number + 1)]  # networks, by their order
        self.begun[number].set()
        self.exporting, self.most_leaving, self.networks, self.exports = 0, 0, 0, 0

    def predict_logits(self, prepared, folder, save_probabilities):
        self.begun[self.networks].set()
        self.networks += 1
        self.most_leaving = max(self.most_leaving, self.exporting + 1)
        deadline = time.monotonic() + PATIENCE
        while len(list(self.folder.iterdir())) < min(self.networks + 1, self.number):
            assert time.monotonic() < deadline, "the next case is not prepared meanwhile"
            time.sleep(0.01)
        self.exporting += 1
        return torch.zeros((1, 4, 4, 4), dtype=torch.half)

    def exports_fast(self, *_):
        return True

    def say_spacing(self, *_): ...

    say_agreement = say_spacing

    def export(self, *_):
        """Wait until the network has the next case."""
        self.exports += 1
        is_next = self.begun[self.exports].wait(PATIENCE)
        self.exporting -= 1
        assert is_next, "the network does not go on meanwhile"
        return Exported(None, None)


@pytest.mark.parametrize(("share", "most"), [(0, 2), (0.5, 8)])
def test_next_case_is_prepared_and_last_one_exported_while_the_network_works(tmp_path, monkeypatch, share, most):
    number = 6
    predictor = ThreeStages(tmp_path, number)
    monkeypatch.setattr(prediction_run, "export", predictor.export)
    monkeypatch.setattr(prediction_run, "SHARE", share)
    tasks = {f"case_{n}": Task((str(tmp_path), str(n)), None, None) for n in range(number)}
    run = Run(predictor, tasks, False, None)
    run.work(list(tasks), 1, 1)
    assert not run.failures
    assert list(run.results) == list(tasks)
    assert predictor.most_leaving <= most  # cases in the network or after it: of large ones two


def test_large_cases_after_a_small_one_wait_two_at_a_time(tmp_path, monkeypatch):
    sizes = [10, 400, 400, 400, 400, 400]
    for number, size in enumerate(sizes):
        (tmp_path / f"{number}.nii").write_bytes(bytes(size))
    tasks = {str(number): Task((str(tmp_path / f"{number}.nii"),), None, None) for number in range(len(sizes))}
    tasks["array"] = Task((np.zeros((1, 4, 5, 5), np.float32), {}), None, None)
    tasks["missing"] = Task((str(tmp_path / "missing.nii"),), None, None)
    monkeypatch.setattr(prediction_run, "total_memory_bytes", lambda: 0)
    run = Run(ThreeStages(tmp_path, len(tasks)), tasks, False, None)
    for name in "01":
        run.waiting.begin(name)
    run.waiting.finished("0", torch.zeros(10, dtype=torch.uint8))
    run.waiting.end("0")
    run.waiting.begin("2")
    assert not any(run.waiting.has_room(name=name) for name in ("3", "array", "missing"))
    run.waiting.end("1")
    assert run.waiting.has_room(name="array")

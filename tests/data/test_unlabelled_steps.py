"""Steps without unlabelled patches: none are made for them, and each step gets its own, whoever makes it."""

from types import SimpleNamespace

import pytest
import torch
from data.two_streams import Make

from nnunet_ext.data import loaders, unlabelled_steps
from nnunet_ext.data.loaders import TwoStreamLoader, in_background, two_stream_loader
from nnunet_ext.data.training_cases import unlabeled_dataset
from nnunet_ext.data.unlabelled_steps import InOrder, UnlabelledSteps


class Stream:
    """A loader that counts its batches."""

    def __init__(self, name):
        self.name, self.made, self.thread_id = name, 0, None

    def set_thread_id(self, thread_id):
        self.thread_id = thread_id

    def __next__(self):
        self.made += 1
        data = torch.full((2, 1, 4, 4), float(self.made))
        return {"data": data, "target": [data, torch.ones_like(data, dtype=torch.uint8)], "keys": [self.name] * 2}


def streams(steps):
    labelled, unlabelled = Stream("l"), Stream("u")
    return labelled, unlabelled, TwoStreamLoader(labelled, unlabelled, steps=steps)


@pytest.mark.parametrize(("every", "first", "thread"), [(1, 0, 0), (2, 0, 0), (2, -1, 0), (3, 4, 0), (4, -1, 3)])
def test_no_unlabelled_patch_is_made_between(every, first, thread):
    labelled, unlabelled, loader = streams(UnlabelledSteps(every, None, first))
    loader.set_thread_id(thread)
    found = ["unlabeled" in next(loader) for _ in range(12)]
    assert found == [(first + thread + i) % every == 0 for i in range(12)]
    assert (labelled.made, unlabelled.made) == (12, sum(found))


def test_a_step_between_has_the_mask_and_the_names_of_the_labelled_patches():
    _, _, loader = streams(UnlabelledSteps(2, None, 1))
    between, full = next(loader), next(loader)
    assert between.keys() == {"data", "target", "keys", "valid"}
    assert (between["keys"], full["keys"]) == (["l"] * 2, ["l"] * 2 + ["u"] * 2)


def test_fewer_unlabelled_than_labelled_patches(make: Make):
    trainer, _ = make()
    steps = UnlabelledSteps(batch_size=1)
    batch = next(two_stream_loader(trainer, unlabeled_dataset(trainer), 1, steps=steps))
    assert [len(batch[key]) for key in ("data", "unlabeled", "unlabeled_strong", "valid")] == [2, 1, 1, 3]


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("first", [-1, 7])
def test_batches_of_several_processes_come_in_order(every, first):
    """Whichever process is first: here the second makes three batches while the first makes one."""
    steps = UnlabelledSteps(every, None, first)
    processes = [streams(steps)[2] for _ in range(2)]
    for number, process in enumerate(processes):
        process.set_thread_id(number)
    turns = iter([0, 1, 1, 1] * 100)
    order = InOrder(steps)
    most = 0
    for step in range(first, first + 60):
        batch = order.next(lambda: next(processes[next(turns)]))
        assert ("unlabeled" in batch) == (step % every == 0)
        most = max(most, sum(len(waiting) for waiting in order.waiting.values()))
    assert most <= 2 * len(processes)


@pytest.mark.filterwarnings(  # of the thread that hands batches on, if processes end while it takes one
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)
@pytest.mark.parametrize("every", [1, 2])
def test_loader_processes_make_what_each_step_needs(make: Make, monkeypatch, every):
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    trainer, _ = make()
    steps = UnlabelledSteps(every, None, -1)
    loader = two_stream_loader(trainer, unlabeled_dataset(trainer), steps=steps)
    background = in_background(loader, pin_memory=False, train=True, seed=1)
    assert type(background) is (loaders._BackgroundLoader if every == 1 else loaders._OrderedLoader)
    try:
        assert ["unlabeled" in next(background) for _ in range(9)] == [i % every == 0 for i in range(-1, 8)]
    finally:
        background._finish()


def test_the_shares_of_processes_add_up(monkeypatch):
    """As nnU-Net shares its batch: the first processes have the patches that are left over."""
    trainer = SimpleNamespace(unlabeled_batch_size=5, is_ddp=True, batch_size=4)
    found = []
    for rank in range(3):
        distributed = SimpleNamespace(get_world_size=lambda: 3, get_rank=lambda rank=rank: rank)
        monkeypatch.setattr(unlabelled_steps, "dist", distributed)
        found.append(unlabelled_steps.unlabelled_batch_size(trainer))
    assert found == [2, 2, 1]
    trainer.unlabeled_batch_size = None
    assert unlabelled_steps.unlabelled_batch_size(trainer) == 4


def test_a_process_without_a_patch_is_refused(monkeypatch):
    monkeypatch.setattr(unlabelled_steps, "dist", SimpleNamespace(get_world_size=lambda: 3))
    trainer = SimpleNamespace(unlabeled_every=1, unlabeled_batch_size=2, is_ddp=True, num_iterations_per_epoch=9)
    with pytest.raises(ValueError, match="shared by the 3 processes that train, each of which needs a patch, got 2"):
        unlabelled_steps.refuse_senseless_steps(trainer)

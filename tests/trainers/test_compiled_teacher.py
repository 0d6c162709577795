"""Student and teacher compiled, and a teacher that labels in another precision."""

from functools import partial

import pytest
import torch
from reference.gates import GateOf
from torch._dynamo.utils import counters

from nnunet_ext.plugin import compat

NAME = "nnUNetTrainerMeanTeacher_4epochs_4iterations"
PATCH = (16, 12, 16)


def ready(trainer, epoch=2):
    trainer.initialize()
    trainer.set_deep_supervision_enabled(True)
    trainer.current_epoch = epoch
    loader, _ = trainer.get_dataloaders()
    trainer.network.train()
    return trainer, loader


@pytest.fixture
def graphs(monkeypatch):
    """Let trainers compile, into graphs that are kept here and run as they are."""
    found = []

    def keeps(graph, inputs):
        shapes = [tuple(tensor.shape) for tensor in inputs if isinstance(tensor, torch.Tensor) and tensor.ndim == 5]
        if any(shape[2:] == (3, 3, 3) for shape in shapes):  # a network's; losses are compiled, too
            symbols = ["any" for value in inputs if isinstance(value, torch.SymInt)]
            found.append(symbols + [shape[0] for shape in shapes if shape[1:] == (1, *PATCH)])
        return graph.forward

    torch.compiler.reset()
    counters.clear()
    monkeypatch.setattr(compat, "compiles", lambda trainer: True)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=keeps))
    yield found
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore")
def test_one_graph_for_each_size_of_batch(make_trainer, graphs):
    """Labelled patches alone, then unlabelled ones beside them; the teacher has a graph of its own."""
    trainer = make_trainer(NAME)
    trainer.unlabeled_every = 2
    trainer, loader = ready(trainer)
    batches = [next(loader) for _ in range(4)]
    for batch in (batches[1], *batches):
        trainer.train_step(batch)
    assert sorted(graphs, key=str) == [[2], [2], [4]]
    assert not counters["recompile_limit"]


def test_a_teacher_labels_in_another_precision(make_trainer):
    trainer = make_trainer(NAME)
    trainer.teacher_precision = "bf16"
    trainer, loader = ready(trainer)
    seen = {}
    for name, network in (("student", trainer.network), ("teacher", trainer.teacher.network)):
        network.register_forward_hook(
            lambda module, images, output, name=name: seen.update(
                {name: output[0].dtype if isinstance(output, list) else output.dtype}
            )
        )
    gate = {}
    trainer.teaching_step.gate = GateOf(lambda logits, labels, confidence, valid: gate.update(c=confidence) or valid)
    report = trainer.train_step(next(loader))
    assert report["unlabeled_loss"] is not None
    assert seen == {"student": torch.float32, "teacher": torch.bfloat16}
    assert gate["c"].dtype == torch.float32  # what thresholds are compared with


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        ("half", r"teacher_precision must be None \(that of the student\) or one of bf16, fp16, got 'half'"),
        ("fp16", "teacher_precision 'fp16' is for GPUs, CPUs compute it in software; take 'bf16' or None"),
    ],
)
def test_precisions_that_make_no_sense(make_trainer, precision, message):
    trainer = make_trainer(NAME)
    trainer.teacher_precision = precision
    with pytest.raises(ValueError, match=message):
        trainer.initialize()


@pytest.mark.parametrize("name", [NAME, "nnUNetTrainerMeanTeacher_ANUNet_4epochs_4iterations"])
def test_the_teachers_smaller_outputs_are_not_computed(make_trainer, name):
    trainer, loader = ready(make_trainer(name))
    called = {"student": [], "teacher": []}
    for owner, network in (("student", trainer.network), ("teacher", trainer.teacher.network)):
        heads = [
            module
            for module in network.decoder.modules()
            if isinstance(module, torch.nn.Conv3d)
            and module.out_channels == trainer.label_manager.num_segmentation_heads
            and module.kernel_size == (1, 1, 1)
        ]
        for head in heads:
            head.register_forward_hook(lambda *_, owner=owner: called[owner].append(owner))
    trainer.train_step(next(loader))
    assert len(called["teacher"]) < len(called["student"])
    if name == NAME:
        assert len(called["teacher"]) == 1

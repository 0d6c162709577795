"""Two processes on CPUs do what one does with the joint batch."""

import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from reference import tiny

from nnunet_ext.trainers.names import find_trainer

LENGTH, STEPS = "_4epochs_2iterations", 2
CASES = [  # Dice per sample in 3D, and over the batch in 2D
    ("nnUNetTrainerCPS", "3d_fullres"),
    ("nnUNetTrainerCPS", "2d"),
    ("nnUNetTrainerCPS_CWCD", "2d"),
    ("nnUNetTrainerCWCD_IFECurvature", "2d"),
    ("nnUNetTrainerIFEEntropy", "3d_fullres"),
    ("nnUNetTrainerCPS_ANUNet", "2d"),
    ("nnUNetTrainerMeanTeacher_Confidence", "2d"),
    ("nnUNetTrainerCPS_Confidence_ClassBalance", "2d"),
    ("nnUNetTrainerMeanTeacher_BCP_Confidence_ClassBalance", "2d"),
    ("nnUNetTrainerCPS_BCP", "3d_fullres"),
    ("nnUNetTrainerCPS_TransUNet", "2d"),
    ("nnUNetTrainerCPS_UNet_ANUNet", "2d"),
    ("nnUNetTrainerCPS_Confidence_CWCD_ANUNet_IFEEntropy", "2d"),
    ("nnUNetTrainerPropagation", "2d"),
]


def fixed_batch(trainer, size):
    """A batch with padding in some samples only, so that the processes have different numbers of valid voxels."""
    generator = torch.Generator().manual_seed(3)
    patch = trainer.configuration_manager.patch_size
    scales = trainer.target_scales()
    data, unlabeled, strong, strong_2 = (torch.randn((size, 1, *patch), generator=generator) for _ in range(4))
    target = [
        torch.randint(0, 3, (size, 1, *(round(p * s) for p, s in zip(patch, scale, strict=True))), generator=generator)
        for scale in scales
    ]
    valid = torch.ones((2 * size, 1, *patch), dtype=torch.uint8)
    valid[0, :, :5] = 0
    valid[-1, ..., 7:] = 0
    views = {"unlabeled": unlabeled, "unlabeled_strong": strong, "unlabeled_strong_2": strong_2}
    return {"data": data, "target": target, "valid": valid} | views


def fixed_triples(size):
    """A batch of triples, the second of which has one object and pixels that do not count."""
    generator = torch.Generator().manual_seed(3)
    masks = torch.randint(0, 2, (size, 2, 32, 32), generator=generator).to(torch.uint8)
    target = torch.randint(0, 3, (size, 2, 32, 32), generator=generator)
    masks[1, 1], target[1] = 0, target[1].clamp(max=1)
    target[1, :, :9] = -1
    present = torch.tensor([[True, True], [True, False]])
    data = torch.randn((size, 3, 1, 32, 32), generator=generator)
    return {"data": data, "masks": masks, "target": target, "present": present}


def part(batch, rank, size):
    take = slice(rank, rank + 1)
    if "masks" in batch:
        return {key: value[take] for key, value in batch.items()}
    valid = torch.cat([batch["valid"][:size][take], batch["valid"][size:][take]])
    return {
        "data": batch["data"][take],
        "target": [t[take] for t in batch["target"]],
        "valid": valid,
    } | {key: batch[key][take] for key in batch if key.startswith("unlabeled")}


def run(rank, world, folder, output):
    """Train all of ``CASES`` one after another, as one of ``world`` processes, and keep what rank 0 has then."""
    torch.set_num_threads(1)
    os.environ["nnUNet_compile"] = "0"
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting_point", rank=rank, world_size=world)
    for number, (name, configuration) in enumerate(CASES):
        for kind in ("raw", "preprocessed", "results"):
            os.environ[f"nnUNet_{kind}"] = os.path.join(folder, str(number), kind)
        found = train(name, configuration, rank, world, os.path.join(folder, str(number)))
        if rank == 0:
            torch.save(found, os.path.join(folder, str(number), output))
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()
        os._exit(0)  # on busy machines gloo's threads can abort a process that shuts down in the usual way


def train(name, configuration, rank, world, folder):
    """Return weights of both networks and the curves, on rank 0."""
    plans = tiny.plans() | {"continue_training": False}
    cls = find_trainer(name + LENGTH)
    if "TransUNet" in name:
        # AdamW divides by the size of gradients, which is nothing but rounding where a bias has no influence
        changes = tiny.NARROW["TransUNetPart"] | {"transunet_dropout": 0.0, "own_optimizer": lambda self: None}
        cls = type("Narrow", (cls,), changes)
        plans["configurations"]["2d"]["patch_size"] = [32, 32]
    if "Propagation" in name:
        # batch norms of CPUs share nothing between processes
        changes = {"propagation_norm": "instance", "propagation_initial_lr": 1e-2, "own_optimizer": lambda self: None}
        changes |= tiny.NARROW["PropagationPart"]
        cls = type("Narrow", (cls,), changes)
    trainer = cls(plans, configuration, 0, tiny.dataset_json(), torch.device("cpu"))
    trainer.current_epoch = 2  # lambda 0.5
    trainer.contour_pseudo_labels = "CPS" in name and "Confidence" not in name
    trainer.configuration_manager.configuration["batch_size"] = 2
    trainer.initialize()
    trainer.set_deep_supervision_enabled(True)
    batch = fixed_triples(2) if "Propagation" in name else fixed_batch(trainer, 2)
    mine = batch if world == 1 else part(batch, rank, 2)
    outputs = []
    for _ in range(STEPS):
        if "BCP" in name:  # processes have boxes of their own, and with one patch each turns of their own
            trainer.copy_paste.reseed(7)
            trainer.copy_paste.steps = 0
        outputs.append(trainer.train_step(mine))
    semi_supervised = "CPS" in name or "MeanTeacher" in name
    values = trainer.monitor.epoch(outputs, 0.5, trainer.is_ddp) if semi_supervised else {}
    if rank > 0:
        return None
    path = os.path.join(folder, "c.pth")
    trainer.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=False)
    second = checkpoint["nnunet_ext_cps"]["network_weights"] if "CPS" in name else {}
    second = checkpoint["nnunet_ext_teaching"]["student"] if "MeanTeacher" in name else second
    return checkpoint["network_weights"], second, values


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder with what one process and two gave for each case: one pair for all, as each imports for seconds."""
    folder = tmp_path_factory.mktemp("ddp")
    for number, (_, configuration) in enumerate(CASES):
        tiny.make(folder / str(number), configurations=(configuration,))
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("raw", "preprocessed", "results"):
            patch.setenv(f"nnUNet_{kind}", "")
        patch.setenv("nnUNet_compile", "0")
        patch.setenv("nnUNet_n_proc_DA", "0")
        for name in ("nnUNet_ext_seed", "nnUNet_ext_cpu_bf16", "nnUNet_extTrainer"):
            patch.delenv(name, raising=False)
        threads = torch.get_num_threads()
        run(0, 1, str(folder), "joint.pt")
        torch.set_num_threads(threads)
        mp.spawn(run, args=(2, str(folder), "split.pt"), nprocs=2)
    return folder


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_two_processes_equal_one_with_the_joint_batch(trained, case):
    folder = trained / str(CASES.index(case))
    expected, found = (torch.load(folder / file, weights_only=False) for file in ("joint.pt", "split.pt"))
    for one, two in zip(expected[:2], found[:2], strict=True):
        for key in one:
            torch.testing.assert_close(two[key], one[key], rtol=1e-5, atol=1e-6)
    for key, value in expected[2].items():
        np.testing.assert_allclose(found[2][key], value, rtol=1e-5, atol=1e-6, err_msg=key)

"""Share of a training's time that is spent waiting for data, with two loader processes.

    python benchmarks/loading.py [--iterations 20] [--trainer nnUNetTrainerMeanTeacher] [--every 2]

Dataset904's own 3d_fullres plan (features 32 to 256, patch 40x56x40, batch 2 + 2), made by the preparation of
benchmarks/accuracy.py; needs NNUNET_EXT_DATA.
"""

from __future__ import annotations

import argparse
import os
import sys
import time


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--configuration", default="3d_fullres", choices=["3d_fullres", "3d_small"])
    parser.add_argument("--loaders", default="2")
    parser.add_argument("--trainer", default="nnUNetTrainerCPS")
    parser.add_argument("--every", type=int, default=1, help="steps from one with unlabelled patches to the next")
    arguments = parser.parse_args()
    import accuracy

    task = accuracy.TASKS["hippocampus"]
    if not (accuracy.DATA / task.dataset).is_dir():
        sys.exit(f"skipped: {accuracy.DATA / task.dataset} is missing; set NNUNET_EXT_DATA")
    accuracy.prepare(task, arguments.configuration)
    os.environ.update(accuracy.environment(accuracy.Run("loading", "")))
    os.environ.update(nnUNet_n_proc_DA=arguments.loaders, nnUNet_ext_cpu_bf16="0")
    del os.environ["nnUNet_compile"]  # nnU-Net's own default
    import torch
    from _pairs import machine
    from batchgenerators.utilities.file_and_folder_operations import load_json

    from nnunet_ext.trainers.names import find_trainer

    preprocessed = accuracy.WORK / "preprocessed" / task.dataset
    plans = load_json(str(preprocessed / f"{task.plans}.json")) | {"continue_training": False}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = find_trainer(arguments.trainer)(
        plans, arguments.configuration, "all", load_json(str(preprocessed / "dataset.json")), device
    )
    if arguments.every > 1:
        trainer.unlabeled_every = arguments.every
    trainer.on_train_start()
    trainer.current_epoch = trainer.num_epochs // 2  # with the whole weight of pseudo-labels
    trainer.on_train_epoch_start()
    waiting = working = 0.0
    for i in range(arguments.iterations + 3):
        start = time.perf_counter()
        batch = next(trainer.dataloader_train)
        middle = time.perf_counter()
        trainer.train_step(batch)
        end = time.perf_counter()
        if i >= 3:
            waiting, working = waiting + middle - start, working + end - middle
    print(machine())
    print(
        f"{arguments.trainer}, every {arguments.every}, {arguments.configuration}, "
        f"{arguments.loaders} loader processes: {100 * waiting / (waiting + working):.1f} % "
        f"of {arguments.iterations} steps spent waiting for data"
    )
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        if hasattr(loader, "_finish"):
            loader._finish()


if __name__ == "__main__":
    main()

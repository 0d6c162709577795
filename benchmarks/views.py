"""Cost of a batch of weak and strong views by that of today's unlabelled batch, one thread, without loader processes.

    python benchmarks/views.py PREPROCESSED_DATASET [--plans SemiSupervisedPlans] [--configuration 3d_fullres]

PREPROCESSED_DATASET is the folder of a dataset in nnUNet_preprocessed that has unlabelled cases.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--plans", default="SemiSupervisedPlans")
    parser.add_argument("--configuration", default="3d_fullres")
    parser.add_argument("--repeats", type=int, default=60)
    arguments = parser.parse_args()
    os.environ.update(nnUNet_preprocessed=str(arguments.folder.parent), nnUNet_compile="0")
    with tempfile.TemporaryDirectory() as results:
        os.environ["nnUNet_results"] = results
        measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    """Time the unlabelled stream with no, one and two strong views in turn."""
    import numpy as np
    import torch
    from _pairs import interleaved, machine, ratio
    from batchgenerators.utilities.file_and_folder_operations import load_json

    from nnunet_ext.data.loaders import two_stream_loader
    from nnunet_ext.data.training_cases import unlabeled_dataset
    from nnunet_ext.trainers.names import find_trainer

    torch.set_num_threads(1)
    plans = load_json(str(arguments.folder / f"{arguments.plans}.json")) | {"continue_training": False}
    content = load_json(str(arguments.folder / "dataset.json"))
    trainer = find_trainer("nnUNetTrainerCPS")(plans, arguments.configuration, "all", content, torch.device("cpu"))
    trainer.initialize()
    np.random.seed(0)
    torch.manual_seed(0)
    loaders = {n: two_stream_loader(trainer, unlabeled_dataset(trainer), n).unlabelled for n in range(3)}
    for loader in loaders.values():
        for _ in range(20):  # nnU-Net's blur times its own ways at first
            next(loader)
    sides = {str(n): lambda loader=loader: [next(loader) for _ in range(10)] for n, loader in loaders.items()}
    seconds = interleaved(sides, arguments.repeats)
    print(machine())
    print(f"{arguments.configuration}, patch {plans['configurations'][arguments.configuration].get('patch_size')}")
    for number in ("1", "2"):
        views = f"{number} strong view{'s' * (number != '1')}"
        print(f"batch with {views} / today's unlabelled batch: {ratio(seconds[number], seconds['0'])}")
    milliseconds = {name: f"{100 * np.median(values):.1f} ms" for name, values in seconds.items()}
    print(f"a batch, by number of strong views (for scale only): {milliseconds}")


if __name__ == "__main__":
    main()

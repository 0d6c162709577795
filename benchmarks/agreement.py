"""What the consensus of several networks takes: time against the sum of their predictions, memory against one of them.

    python benchmarks/agreement.py [--members 3] [--classes 14] [--shape 60 256 256] [--pairs 3] [--features 8 16]

The scan is generated, CT-like: ellipsoids in noise; the networks' grid has half as many voxels along each axis of a
slice. The networks run as always (their time and memory count), but what they say is replaced by logits that are sure
inside organs and unsure at their borders, of each network with noise of its own: random networks would have borders
everywhere. One side predicts with every network in turn, as ``nnUNetv2_predict --fast_export`` does, the other finds
the consensus; reading, preprocessing and writing are in both, loading the networks is in neither. Each is a process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil

HERE = Path(__file__).resolve().parent
WORK = Path(os.environ.get("NNUNET_EXT_BENCH", HERE / "results")) / "agreement"
SPACING, GRID = (2.0, 0.8, 0.8), (2.0, 1.6, 1.6)  # mm, array order


def make(arguments: argparse.Namespace) -> None:
    """Write scan, label map at the grid, and model folders, where they are not there yet."""
    import SimpleITK

    sys.path.insert(0, str(HERE))
    from _architecture import architecture

    if (WORK / "made.json").is_file() and json.loads((WORK / "made.json").read_text()) == wanted(arguments):
        return
    WORK.mkdir(parents=True, exist_ok=True)
    shape, classes = arguments.shape, arguments.classes
    rng = np.random.default_rng(0)
    labels = np.zeros(shape, np.uint8)
    grid = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    radius = 0.75 * classes ** (-1 / 3)
    for label in range(1, classes):
        centre, stretch = rng.uniform(-0.8, 0.8, 3), rng.uniform(0.7, 1.4, 3)
        inside = sum(((g - c) / (radius * s)) ** 2 for g, c, s in zip(grid, centre, stretch, strict=True)) < 1
        labels[inside] = label
    scan = labels * 10 + rng.normal(40, 15, shape).astype(np.float32)
    image = SimpleITK.GetImageFromArray(scan.astype(np.int16))
    image.SetSpacing(SPACING[::-1])
    SimpleITK.WriteImage(image, str(WORK / "scan_0000.nii.gz"))
    np.save(WORK / "labels.npy", labels[:, ::2, ::2])
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": arguments.patch,
        "median_image_size_in_voxels": [n / f for n, f in zip(shape, (1, 2, 2), strict=True)],
        "spacing": list(GRID),
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling | {"order": 3},
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": resampling | {"is_seg": True},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": resampling,
        "architecture": architecture(3, arguments.features),
        "batch_dice": False,
    }
    statistics = {"max": 300.0, "mean": 80.0, "median": 80.0, "min": -50.0, "std": 40.0}
    plans = {
        "dataset_name": "Dataset999_Benchmark",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": list(SPACING),
        "original_median_shape_after_transp": list(shape),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": statistics | {"percentile_00_5": 0.0, "percentile_99_5": 200.0}
        },
    }
    dataset_json = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0} | {f"c{n}": n for n in range(1, classes)},
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    write_model(plans, dataset_json, arguments.members)
    (WORK / "made.json").write_text(json.dumps(wanted(arguments)))


def wanted(arguments: argparse.Namespace) -> dict[str, object]:
    return {name: getattr(arguments, name) for name in ("shape", "classes", "members", "features", "patch")}


def write_model(plans: dict, dataset_json: dict, members: int) -> None:
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    model = WORK / "model"
    manager = PlansManager(plans)
    for fold in range(members):
        torch.manual_seed(fold)
        network = nnUNetTrainer.build_network_architecture(
            manager, manager.get_configuration("3d_fullres"), 1, len(dataset_json["labels"]), False
        )
        (model / f"fold_{fold}").mkdir(parents=True, exist_ok=True)
        checkpoint = {
            "network_weights": network.state_dict(),
            "trainer_name": "nnUNetTrainer",
            "init_args": {"configuration": "3d_fullres"},
            "inference_allowed_mirroring_axes": None,
        }
        torch.save(checkpoint, model / f"fold_{fold}" / "checkpoint_final.pth")
    (model / "plans.json").write_text(json.dumps(plans))
    (model / "dataset.json").write_text(json.dumps(dataset_json))


def say_what_organs_are(predictor) -> None:
    """Let a predictor run its network, and then say something sensible, a slice at a time."""
    from scipy.ndimage import gaussian_filter

    original = predictor.predict_sliding_window_return_logits
    labels = np.load(WORK / "labels.npy", mmap_mode="r")
    calls = [0]

    def replaced(image):
        import torch

        logits = original(image)
        begun = time.perf_counter(), time.process_time()
        calls[0] += 1
        rng = np.random.default_rng(calls[0])
        for index in range(logits.shape[1]):
            for label in range(len(logits)):
                soft = gaussian_filter((labels[index] == label).astype(np.float32), 1)
                noise = rng.standard_normal(soft.shape, np.float32)
                logits[label, index] = torch.from_numpy(12 * soft - 6 + 0.3 * noise)
        skipped[0] += time.perf_counter() - begun[0]  # what is made up counts for neither side
        skipped[1] += time.process_time() - begun[1]
        return logits

    predictor.predict_sliding_window_return_logits = replaced


skipped = [0.0, 0.0]  # seconds of the clock and of the processor


def one_side(side: str, members: int, device: str) -> None:
    """Predict the scan one way, in this process, and print what it took."""
    import torch

    from nnunet_ext.inference.process_memory import peak_memory_mib
    from nnunet_ext.inference.writing import export
    from nnunet_ext.pseudo_labels.consensus import features_of, find_consensus
    from nnunet_ext.pseudo_labels.members import find_members
    from nnunet_ext.pseudo_labels.panel import Panel, Settings, prepare_for_all
    from nnunet_ext.pseudo_labels.store import Store

    torch.set_num_threads(min(2, torch.get_num_threads()))
    members_found = find_members([WORK / "model"], range(max(members, 2)))[:members]
    panel = Panel(members_found, Settings(device))
    for group in panel.groups:
        for predictor in {id(seat.predictor): seat.predictor for seat in group.seats}.values():
            say_what_organs_are(predictor)
    images = (str(WORK / "scan_0000.nii.gz"),)
    before = psutil.Process().memory_info().rss / 2**20
    start, cpu = time.perf_counter(), time.process_time()
    if side == "consensus":
        store = Store(WORK / "preprocessed", members_found, {}, ".nii.gz")
        store.begin()
        prepared = prepare_for_all(images, panel.models)
        features = features_of(prepared[0], panel.models[0])
        properties = prepared[0].properties
        consensus = find_consensus(panel, prepared, store.folder)
        store.save("scan", {}, consensus, features, panel.models[0].plans.image_reader_writer_class(), properties)
    else:
        for seat in panel.groups[0].seats:
            prepared = prepare_for_all(images, panel.models)
            predictor, own = seat.take(), prepared.pop()
            logits = predictor.predict_logits(own)
            export(logits, own, panel.models[0], str(WORK / "own"), fast=True, device=predictor.export_device)
            del logits, own
    seconds, cpu = time.perf_counter() - start - skipped[0], time.process_time() - cpu - skipped[1]
    peak = peak_memory_mib()
    found = {"seconds": seconds, "processor_seconds": cpu, "peak_mib": peak, "beyond_mib": peak - before}
    print("RESULT" + json.dumps(found))


def run(side: str, members: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Run one side in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--members", str(members), "--device", arguments.device]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.rpartition("RESULT")[2])


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--classes", type=int, default=14)
    parser.add_argument("--shape", type=int, nargs=3, default=[60, 256, 256], help="of the scan")
    parser.add_argument("--patch", type=int, nargs=3, default=[32, 64, 64])
    parser.add_argument("--features", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--side", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        one_side(arguments.side, arguments.members, arguments.device)
        return
    make(arguments)
    from _pairs import machine

    print(machine(), time.strftime("%Y-%m-%d"), f"scan {arguments.shape}, {arguments.classes} classes", flush=True)
    names = ("time", "processor time", "whole peak memory", "memory beyond the networks")
    ratios: dict[str, list[float]] = {name: [] for name in names}
    for pair in range(arguments.pairs):
        sides = ("consensus", "members") if pair % 2 else ("members", "consensus")
        found = {side: run(side, arguments.members, arguments) for side in sides}
        one = run("members", 1, arguments)
        ratios["time"].append(found["consensus"]["seconds"] / found["members"]["seconds"])
        ratios["processor time"].append(found["consensus"]["processor_seconds"] / found["members"]["processor_seconds"])
        ratios["whole peak memory"].append(found["consensus"]["peak_mib"] / one["peak_mib"])
        ratios["memory beyond the networks"].append(found["consensus"]["beyond_mib"] / one["beyond_mib"])
    for name, values in ratios.items():
        of = f"sum of {arguments.members} predictions" if "time" in name else "one prediction"
        print(f"{name}, consensus / {of}: {np.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]")
    print("members", found["members"], "one", one, "consensus", found["consensus"])


if __name__ == "__main__":
    main()

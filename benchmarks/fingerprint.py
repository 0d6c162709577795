"""Memory and time of the global fingerprint on CT of 512 x 512 x 100, int16.

    python benchmarks/fingerprint.py memory [--cases 50 2000] [-np 2]         peak memory, for few cases and for many
    python benchmarks/fingerprint.py time [--pairs 3] [--cases 40] [-np 2]    against reading alone, against nnU-Net

A few files are generated once and referenced by many names in dataset.json. Every side is a process of its own. Reading
alone uses the same reader, workers and order, and does nothing with the voxels. Before anything is measured, the
percentiles are compared with numpy's over all voxels.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
WORK = Path(os.environ.get("NNUNET_EXT_BENCH", HERE / "results")) / "fingerprint"
SHAPE, FILES = (100, 512, 512), 4
MEBIBYTE = 2**20
IMAGE_MIB = np.prod(SHAPE) * 4 / MEBIBYTE  # as float32
SIDES = {
    "ours": """
from nnunet_ext.planners.global_fingerprint import GlobalIntensityFingerprintExtractor as Extractor
Extractor({number}, {processes}).run(True)
""",
    "stock": """
from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor
fingerprint_extractor.DatasetFingerprintExtractor({number}, {processes}).run(True)
""",
    "reading": """
from pathlib import Path
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from tqdm import tqdm
from nnunet_ext.fingerprints.cases import case_table
from nnunet_ext.data.pool import map_isolated
from read_only import read
from nnunetv2.paths import nnUNet_raw
dataset = get_filenames_of_train_images_and_targets(str(Path(str(nnUNet_raw)) / {name!r}))
table = case_table({name!r}, dataset)
tasks = {{}}
for kind, case in table.names():
    images, label = table.files(kind, case)
    tasks[case] = (SimpleITKIO, images, label)
for _ in tqdm(map_isolated(read, tasks, {processes}, always_spawn=True), total=len(tasks)):
    pass
""",
}
MEASURE = """
import json, multiprocessing, resource, sys, threading, time
start = time.perf_counter()
worker_peaks = {{}}


def watch():
    # The peak that a worker reports of itself begins with its parent's memory, from before it became a new program.
    while True:
        for child in multiprocessing.active_children():
            try:
                with open(f"/proc/{{child.pid}}/status") as status:
                    peak = [int(line.split()[1]) for line in status if line.startswith("VmHWM")]
                    worker_peaks[child.pid] = max([worker_peaks.get(child.pid, 0), *peak])
            except OSError:
                pass
        time.sleep(0.1)


if __name__ == "__main__":
    threading.Thread(target=watch, daemon=True).start()
    {body}
    seconds = time.perf_counter() - start
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    worker = max(worker_peaks.values())
    print("RESULT" + json.dumps({{"seconds": seconds, "main_mib": own / 1024, "worker_mib": worker / 1024}}))
"""


def environment() -> dict[str, str]:
    """Return the environment of every side."""
    folders = {f"nnUNet_{name}": str(WORK / name) for name in ("raw", "preprocessed", "results")}
    return os.environ | folders | {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def generate() -> list[Path]:
    """Write the files once: a smooth body in air, with noise, and a label of a tenth of it."""
    import SimpleITK
    from scipy.ndimage import gaussian_filter

    files = [WORK / "files" / f"ct_{n}.nii.gz" for n in range(FILES)]
    for seed, path in enumerate(files):
        label_path = path.with_name(f"label_{seed}.nii.gz")
        if path.is_file() and label_path.is_file():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        smooth = gaussian_filter(rng.normal(0, 1, (25, 64, 64)), 3)
        smooth = np.kron(smooth / smooth.std(), np.ones((4, 8, 8)))
        y, x = np.mgrid[-1:1:512j, -1:1:512j]
        body = (x**2 + (1.4 * y) ** 2 < 0.6)[None]
        hounsfield = np.where(body, 40 + 60 * smooth, -1000) + rng.normal(0, 12, SHAPE)
        image = SimpleITK.GetImageFromArray(hounsfield.clip(-1024, 3071).round().astype(np.int16))
        label = SimpleITK.GetImageFromArray((body & (smooth > 1)).astype(np.uint8))
        for one, target in ((image, path), (label, label_path)):
            one.SetSpacing((0.75, 0.75, 2.5))
            SimpleITK.WriteImage(one, str(target.with_name(f"tmp_{target.name}")), True)
            target.with_name(f"tmp_{target.name}").replace(target)
    return files


def dataset(number: int, cases: int, labelled: bool) -> str:
    """Reference the files under many names, and return the dataset's name."""
    for other in (WORK / "raw").glob(f"Dataset{number:03d}_*"):
        shutil.rmtree(other)
        shutil.rmtree(WORK / "preprocessed" / other.name, ignore_errors=True)
    name = f"Dataset{number:03d}_CT{cases}"
    files = generate()
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}
    images = {f"case_{n:04d}": {"images": [str(files[n % FILES])]} for n in range(cases)}
    if labelled:
        for n, entry in enumerate(images.values()):
            entry["label"] = str(files[n % FILES].with_name(f"label_{n % FILES}.nii.gz"))
    content |= {"numTraining": cases if labelled else 0, "dataset" if labelled else "unlabeled": images}
    folder = WORK / "raw" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content))
    shutil.rmtree(WORK / "preprocessed" / name, ignore_errors=True)
    return name


def run(side: str, name: str, processes: int) -> dict[str, float]:
    """Run one side in a process of its own and return its figures."""
    body = SIDES[side].format(number=int(name[7:10]), name=name, processes=processes)
    script = WORK / f"{side}.py"
    script.write_text(MEASURE.format(body=body.strip().replace("\n", "\n    ")))
    done = subprocess.run([sys.executable, str(script)], env=environment(), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stdout}")
    return json.loads(done.stdout.rpartition("RESULT")[2])


def check(name: str) -> None:
    """Compare percentiles and extremes with numpy's."""
    import SimpleITK

    found = json.loads((WORK / "preprocessed" / name / "dataset_fingerprint.json").read_text())
    found = found["global_intensity_properties_per_channel"]["0"]
    voxels = np.concatenate([SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(f))).ravel() for f in generate()])
    expected = dict(
        zip(("percentile_00_5", "median", "percentile_99_5"), np.percentile(voxels, (0.5, 50, 99.5)), strict=True)
    )
    expected |= {"min": voxels.min(), "max": voxels.max()}
    wrong = {key: (found[key], float(value)) for key, value in expected.items() if found[key] != value}
    if wrong:
        sys.exit(f"not numpy's values: {wrong}")
    print("percentiles, minimum and maximum equal numpy's over all voxels", flush=True)


def measure_memory(cases: list[int], processes: int) -> None:
    """Print peak memory for each number of cases, and beyond a worker that only reads."""
    few = dataset(801, FILES, labelled=False)
    run("ours", few, processes)
    check(few)
    reading = run("reading", dataset(802, 8, labelled=False), max(processes, 2))
    print(f"worker that only reads: peak {reading['worker_mib']:.0f} MiB; one image as float32: {IMAGE_MIB:.0f} MiB")
    for index, number in enumerate(cases):
        figures = run("ours", dataset(810 + index, number, labelled=False), max(processes, 2))
        beyond = (figures["worker_mib"] - reading["worker_mib"]) / IMAGE_MIB
        print(
            f"{number} cases: main process {figures['main_mib']:.0f} MiB, largest worker "
            f"{figures['worker_mib']:.0f} MiB ({beyond:+.2f} images beyond reading), {figures['seconds']:.0f} s",
            flush=True,
        )


def measure_time(pairs: int, cases: int, processes: int) -> None:
    """Print ratios of whole extractions, interleaved."""
    for labelled, other in ((False, "reading"), (True, "stock")):
        name = dataset(804 + labelled, cases, labelled)
        ratios = []
        for pair in range(pairs):
            sides = ["ours", other] if pair % 2 else [other, "ours"]
            seconds = {side: run(side, name, processes)["seconds"] for side in sides}
            ratios.append(seconds["ours"] / seconds[other])
        kind = "labelled" if labelled else "unlabelled"
        print(
            f"ours / {other}, {cases} {kind} cases, {processes} processes: median {np.median(ratios):.3f} "
            f"[{min(ratios):.3f}, {max(ratios):.3f}] ({pairs} pairs)",
            flush=True,
        )


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["memory", "time"])
    parser.add_argument("--cases", type=int, nargs="+", default=None)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("-np", type=int, default=2)
    arguments = parser.parse_args()
    sys.path.insert(0, str(HERE))
    from _pairs import machine

    print(machine(), time.strftime("%Y-%m-%d"), flush=True)
    if arguments.what == "memory":
        measure_memory(arguments.cases or [50, 2000], arguments.np)
    else:
        measure_time(arguments.pairs, (arguments.cases or [40])[0], arguments.np)


if __name__ == "__main__":
    main()

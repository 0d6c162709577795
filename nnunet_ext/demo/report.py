"""What the demo found: a table, two figures and the same numbers as JSON."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_ext import files
from nnunet_ext.demo.dataset import FILE_ENDING
from nnunet_ext.demo.figures import OverlayRow, dice_figure, overlay_figure, read_slices
from nnunet_ext.demo.phantom import LABELS
from nnunet_ext.evaluation.summary import RESAMPLES, paired_bootstrap, read_summary

Array = npt.NDArray[np.float64]

ORGANS = tuple(name for name in LABELS if name != "background")
_WHEN = """Unlabelled scans pay where few scans have labels and many more have none, and where the training is long
enough for the network that labels them to be right most of the time; they cannot teach what no labelled scan shows.
Both trainings took the same number of steps, and those with unlabelled scans take longer: docs/benchmarks.md compares
at equal time, too."""


@dataclass(frozen=True)
class Method:
    """One of the two trainings.

    Attributes:
        title: Name of the method in tables and figures.
        trainer: Name of the trainer, after ``-tr``.
        predictions: Folder with the method's segmentations of the test cases and nnU-Net's ``summary.json``.
        seconds: Wall-clock time of the training.
        peak_memory_mb: Peak of host memory of the training, in 10^6 bytes.
        curves: File of the training curves, nnU-Net's ``progress.png``.
    """

    title: str
    trainer: str
    predictions: Path
    seconds: float
    peak_memory_mb: float
    curves: Path


@dataclass(frozen=True)
class Comparison:
    """Dice of both methods, case by case.

    Attributes:
        cases: Names of the test cases.
        baseline: Dice of the first method, ``(cases, organs)``.
        candidate: Dice of the second method, ``(cases, organs)``.
        smallest: Column of the organ of the fewest voxels in the truth.
    """

    cases: tuple[str, ...]
    baseline: Array
    candidate: Array
    smallest: int = len(ORGANS) - 1

    def worst(self) -> tuple[float, float]:
        """Return the mean over organs of the case that each method does worst, a case of its own for each."""
        first, second = (float(np.nanmean(values, axis=1).min()) for values in (self.baseline, self.candidate))
        return first, second

    def differences(self) -> Array:
        """Mean Dice of the candidate minus that of the baseline, for each case."""
        return np.nanmean(self.candidate, axis=1) - np.nanmean(self.baseline, axis=1)

    def interval(self, organ: int | None = None) -> tuple[float, float, float]:
        """Mean difference and its 95 % interval, from a bootstrap over the cases that keeps pairs together.

        Args:
            organ: Column of the organ; ``None`` for the mean over organs.

        Returns:
            Mean, lower and upper end.
        """
        pairs = self.differences() if organ is None else self.candidate[:, organ] - self.baseline[:, organ]
        return paired_bootstrap(pairs)


def compare(baseline: Path, candidate: Path) -> Comparison:
    """Read the two ``summary.json`` of nnU-Net's evaluation.

    Args:
        baseline: ``summary.json`` of the first method.
        candidate: ``summary.json`` of the second method.

    Returns:
        Dice for each case and organ.

    Raises:
        ValueError: If the two were not evaluated on the same cases.
    """
    first, second = _by_case(baseline, "Dice"), _by_case(candidate, "Dice")
    if first.keys() != second.keys():
        unpaired = ", ".join(sorted(first.keys() ^ second.keys()))
        raise ValueError(
            f"{baseline} and {candidate} differ in their cases: {unpaired}; evaluate both on the same folder"
        )
    cases = tuple(sorted(first))
    voxels = np.mean(list(_by_case(baseline, "n_ref").values()), axis=0)
    return Comparison(
        cases,
        np.array([first[case] for case in cases]),
        np.array([second[case] for case in cases]),
        int(voxels.argmin()),
    )


def _by_case(summary: Path, measure: str) -> dict[str, list[float]]:
    """Return a measure of nnU-Net's evaluation for each organ of each case."""
    return {
        case: [classes[LABELS[organ]][measure] for organ in ORGANS]
        for case, classes in read_summary(summary, FILE_ENDING).items()
    }


def verdict(comparison: Comparison, baseline: str, candidate: str) -> str:
    """Say in one sentence what the comparison shows, and what it does not.

    Args:
        comparison: Comparison of the two methods.
        baseline: Name of the first method.
        candidate: Name of the second method.

    Returns:
        The sentence.
    """
    mean, low, high = comparison.interval()
    column, worst = comparison.smallest, comparison.worst()
    small = [float(np.nanmean(values[:, column])) for values in (comparison.baseline, comparison.candidate)]
    measured = (
        f"mean Dice {mean:+.3f}, 95 % interval {low:+.3f} to {high:+.3f} over {len(comparison.cases)} test cases; "
        f"worst case {worst[0]:.3f} to {worst[1]:.3f}; smallest organ, {ORGANS[column]}, {small[0]:.3f} to "
        f"{small[1]:.3f}"
    )
    if low > 0:
        return f"{candidate} was better than {baseline} here ({measured})."
    if high < 0:
        return f"{candidate} was worse than {baseline} here ({measured})."
    return f"{candidate} was not distinguishable from {baseline} here ({measured})."


def write_report(folder: Path, dataset: Path, baseline: Method, candidate: Method, setup: dict[str, Any]) -> None:
    """Print the table and write ``report.md``, ``report.json`` and the figures.

    Args:
        folder: Folder to write to.
        dataset: Raw data set with the test images and labels.
        baseline: The supervised training.
        candidate: The semi-supervised training.
        setup: Settings, versions and machine; ``commands`` is a list of commands to show.
    """
    folder.mkdir(parents=True, exist_ok=True)
    comparison = compare(baseline.predictions / "summary.json", candidate.predictions / "summary.json")
    table = markdown_table(comparison, baseline, candidate)
    sentence = verdict(comparison, baseline.title, candidate.title)
    titles = (baseline.title, candidate.title)
    files.sweep(folder)
    dice = dice_figure(ORGANS, comparison.baseline, comparison.candidate, titles)
    rows = _overlay_rows(comparison, dataset, (baseline, candidate))
    overlays = overlay_figure(rows, ("CT", "ground truth", *titles))
    for name, figure in (("dice_per_organ.png", dice), ("overlays.png", overlays)):
        with files.whole(folder / name) as temporary:
            figure.savefig(temporary, dpi=130)
    for method in (baseline, candidate):
        if method.curves.is_file():
            with files.whole(folder / f"progress_{method.title.lower()}.png") as temporary:
                shutil.copyfile(method.curves, temporary)
    files.write_json(folder / "report.json", _numbers(comparison, baseline, candidate, setup, sentence))
    page = _page(table, sentence, setup, sorted(folder.glob("*.png")))
    with files.whole(folder / "report.md") as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(f"\n{table}\n\n{sentence}\n\nIn {folder}:")
    for path in sorted(folder.iterdir()):
        print(f"  {path.name}")


def markdown_table(comparison: Comparison, baseline: Method, candidate: Method) -> str:
    """Dice per organ, their mean, time and memory, in columns that line up.

    Args:
        comparison: Comparison of the two methods.
        baseline: The first method.
        candidate: The second method.

    Returns:
        A Markdown table.
    """
    rows = [["Dice", baseline.title, candidate.title, "difference (95 % interval)"]]
    for column, organ in enumerate((*ORGANS, "mean")):
        first, second = (
            np.nanmean(values if organ == "mean" else values[:, column])
            for values in (comparison.baseline, comparison.candidate)
        )
        mean, low, high = comparison.interval(None if organ == "mean" else column)
        title = f"{organ} (smallest)" if column == comparison.smallest else organ
        rows.append([title, f"{first:.3f}", f"{second:.3f}", f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"])
    worst = comparison.worst()
    rows.append(["worst case", *(f"{value:.3f}" for value in worst), f"{worst[1] - worst[0]:+.3f}"])
    ratio = candidate.seconds / baseline.seconds if baseline.seconds else float("nan")
    rows.append(["training time", _minutes(baseline.seconds), _minutes(candidate.seconds), f"{ratio:.1f} times"])
    memory = [f"{method.peak_memory_mb / 1000:.2f} GB" for method in (baseline, candidate)]
    change = (candidate.peak_memory_mb - baseline.peak_memory_mb) / 1000
    rows.append(["peak host memory", *memory, f"{change:+.2f} GB"])
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _minutes(seconds: float) -> str:
    return f"{int(seconds // 60)} min {seconds % 60:02.0f} s"


def _overlay_rows(comparison: Comparison, dataset: Path, methods: Sequence[Method]) -> list[OverlayRow]:
    """The cases with the worst, the median and the best difference."""
    differences = comparison.differences()
    order = np.argsort(differences)
    picks = {
        "worst difference": order[0],
        "median difference": order[(len(order) - 1) // 2],
        "best difference": order[-1],
    }
    rows = []
    for reason, index in picks.items():
        name = comparison.cases[index] + FILE_ENDING
        image = dataset / "imagesTs" / f"{comparison.cases[index]}_0000{FILE_ENDING}"
        hu, maps, aspect = read_slices(image, [dataset / "labelsTs" / name, *(m.predictions / name for m in methods)])
        dice = [np.nanmean(values[index]) for values in (comparison.baseline, comparison.candidate)]
        captions = ("", "", *(f"mean Dice {value:.3f}" for value in dice))
        title = f"{comparison.cases[index]}\n{reason} ({differences[index]:+.3f})"
        rows.append(OverlayRow(title, hu, maps, aspect, captions))
    return rows


def _numbers(
    comparison: Comparison, baseline: Method, candidate: Method, setup: dict[str, Any], sentence: str
) -> dict[str, Any]:
    def difference(organ: int | None) -> dict[str, float]:
        return dict(zip(("mean", "low", "high"), comparison.interval(organ), strict=True))

    return {
        "verdict": sentence,
        "setup": setup,
        "methods": {
            method.title: {
                "trainer": method.trainer,
                "training_seconds": round(method.seconds, 1),
                "peak_host_memory_mb": round(method.peak_memory_mb, 1),
                "mean_dice": float(np.nanmean(values)),
                "worst_case_dice": worst,
                "dice": {
                    case: dict(zip(ORGANS, row, strict=True))
                    for case, row in zip(comparison.cases, values.tolist(), strict=True)
                },
            }
            for method, values, worst in zip(
                (baseline, candidate), (comparison.baseline, comparison.candidate), comparison.worst(), strict=True
            )
        },
        "smallest_organ": ORGANS[comparison.smallest],
        "difference": {
            "mean": difference(None),
            "organs": {organ: difference(column) for column, organ in enumerate(ORGANS)},
            "worst_case": comparison.worst()[1] - comparison.worst()[0],
        },
    }


def _page(table: str, sentence: str, setup: dict[str, Any], figures: Sequence[Path]) -> str:
    commands = "\n".join(setup["commands"])
    pictures = "\n\n".join(f"![{path.stem.replace('_', ' ')}]({path.name})" for path in figures)
    return f"""# Demo: phantoms of an abdominal CT

{sentence}

{table}

{setup["labeled"]} labelled cases ({setup["labeled"] - 1} to train, 1 to validate), {setup["unlabeled"]} unlabelled,
{setup["test"]} test cases that no training saw; seed {setup["seed"]}. Both trainings: {setup["epochs"]} epochs of
{setup["iterations"]} iterations on {setup["device"]} ({setup["machine"]}; nnunetv2 {setup["nnunetv2"]}, torch
{setup["torch"]}, precision: {setup["precision"]}).

```
{commands}
```

{_WHEN}

Dice is nnU-Net's own (`nnUNetv2_evaluate_folder`). The worst case is that of the lowest mean over organs, the
smallest organ that of the fewest voxels. The interval is a paired bootstrap over the test cases
({RESAMPLES} resamples): it holds for new phantoms with these two trained networks, not for another training run.
Time is wall-clock time of `nnUNetv2_train`, its final validation included. Memory is that of the command with its
workers, shared pages counted once, sampled every four seconds, without GPU memory. Phantoms are no patients, and this
training is far shorter than nnU-Net's default of 250 000 iterations: read this as a check that everything works, not
as a result on real data.

{pictures}
"""

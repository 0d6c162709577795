"""Progress bars that follow what nnU-Net's commands print."""

import math
import re
import sys

from tqdm import tqdm

_EPOCH = re.compile(r"\bEpoch (\d+)\s*$")
_EPOCH_DONE = re.compile(r"\bEpoch time: ")
_DICE = re.compile(r"\bPseudo dice (\[.*\])")
_NUMBER = re.compile(r"\d+\.\d+|nan")
_CASE = re.compile(r"^done with \S+")
_COUNT = re.compile(r"\|\s*(\d+)/(\d+) \[")  # of a bar of tqdm


class StageBar:
    """Progress bar of a stage whose command tells nothing: it shows the time."""

    def __init__(self, title: str, total: int | None = None, unit: str = "it", shown: bool = True) -> None:
        # into a file, a line every ten seconds is enough
        interval = 0.2 if sys.stderr.isatty() else 10
        shape = None if total else "{desc} [{elapsed}]"
        self.bar = tqdm(
            total=total,
            desc=title,
            unit=unit,
            mininterval=interval,
            bar_format=shape,
            dynamic_ncols=True,
            disable=not shown,
        )

    def line(self, text: str) -> None:
        """Take one line of the command's output."""

    def tick(self) -> None:
        """Show that time goes by."""
        if sys.stderr.isatty():
            self.bar.refresh()

    def close(self, finished: bool) -> None:
        """End the bar; a finished one is full."""
        if finished and self.bar.total:
            self.bar.update(self.bar.total - self.bar.n)
        self.bar.close()


class TrainingBar(StageBar):
    """One step per epoch, with the mean pseudo Dice that nnU-Net logs."""

    def __init__(self, title: str, epochs: int, shown: bool = True) -> None:
        super().__init__(title, epochs, "epoch", shown)

    def line(self, text: str) -> None:
        """Take one line of the training's output."""
        if match := _EPOCH.search(text):
            self._move_to(int(match[1]))
        elif match := _DICE.search(text):
            values = [float(number) for number in _NUMBER.findall(match[1])]
            values = [value for value in values if not math.isnan(value)]
            if values:
                self.bar.set_postfix_str(f"pseudo Dice {sum(values) / len(values):.3f}", refresh=False)
        elif _EPOCH_DONE.search(text):
            self.bar.update(1)

    def _move_to(self, epoch: int) -> None:
        """A continued training starts in the middle; epochs done earlier must not speed up the estimate."""
        if epoch > self.bar.n:
            self.bar.initial = epoch
            self.bar.n = epoch
            self.bar.refresh()


class PredictionBar(StageBar):
    """One step per case."""

    def __init__(self, title: str, cases: int) -> None:
        super().__init__(title, cases, "case")

    def line(self, text: str) -> None:
        """Take one line of the prediction's output."""
        if _CASE.match(text):
            self.bar.update(1)


class CountBar(StageBar):
    """Follows the progress bar of the command."""

    def __init__(self, title: str, shown: bool = True) -> None:
        super().__init__(title, 1, "case", shown)

    def line(self, text: str) -> None:
        """Take one line of the command's output."""
        if counts := _COUNT.findall(text):
            self.bar.n, self.bar.total = (int(number) for number in counts[-1])
            self.bar.refresh()

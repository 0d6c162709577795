"""Progress bars that follow what commands print."""

import pytest

from nnunet_ext.evaluation.progress import CountBar, PredictionBar, StageBar, TrainingBar


def test_training_bar_follows_nnunets_lines():
    bar = TrainingBar("train", epochs=4)
    for line in (
        "2026-01-01 10:00:00.000000: Epoch 0",
        "2026-01-01 10:00:01.000000: Pseudo dice [np.float32(0.2), np.float32(0.4), np.float64(nan)]",
        "2026-01-01 10:00:01.000000: Epoch time: 1.0 s",
    ):
        bar.line(line)
    assert bar.bar.n == 1
    assert "0.300" in str(bar.bar.postfix)  # (0.2 + 0.4) / 2, nan left out
    bar.line("2026-01-01 10:00:02.000000: Epoch 1")
    assert bar.bar.n == 1
    bar.close(finished=False)


def test_training_bar_of_a_continued_training_starts_in_the_middle():
    bar = TrainingBar("train", epochs=4)
    bar.line("2026-01-01 10:00:00.000000: Epoch 2 ")
    assert (bar.bar.n, bar.bar.initial) == (2, 2)
    bar.close(finished=True)
    assert bar.bar.n == 4


def test_prediction_bar_counts_cases():
    bar = PredictionBar("predict", cases=3)
    for line in ("Predicting test_000:", "done with test_000", "something else"):
        bar.line(line)
    assert bar.bar.n == 1
    bar.close(finished=False)


def test_stage_bar_shows_the_time_only(capsys):
    bar = StageBar("plan")
    bar.line("anything")
    bar.tick()
    bar.close(finished=True)
    assert "plan [00:00]" in capsys.readouterr().err


def test_count_bar_follows_the_bar_of_the_command():
    bar = CountBar("label")
    for line in ("scans:   0%|          | 0/40 [00:00<?, ?it/s]", "scans:  25%|██        | 10/40 [00:01<00:03]", "1/2"):
        bar.line(line)
    assert (bar.bar.n, bar.bar.total) == (10, 40)
    bar.close(finished=True)
    assert bar.bar.n == 40


@pytest.mark.parametrize(
    ("kind", "line"), [(TrainingBar, "Epoch 3 "), (CountBar, "|  | 3/4 ["), (StageBar, "anything")]
)
def test_a_bar_that_is_not_wanted_is_silent(kind, line, capsys):
    bar = kind("train", 5, shown=False) if kind is TrainingBar else kind("train", shown=False)
    bar.line(line)
    bar.tick()
    bar.close(finished=True)
    assert not capsys.readouterr().err

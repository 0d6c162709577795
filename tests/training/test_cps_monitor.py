"""Curves of CPS and the warning for classes that are being lost."""

import numpy as np

from nnunet_ext.training.cps_monitor import CPSMonitor


def outputs(pseudo, labelled=(80, 10, 10)):
    counts = np.array([pseudo, pseudo, pseudo], float)
    return [
        {"loss": 1.0, "loss_2": 3.0, "cps": 0.5, "counts": counts, "labelled_counts": np.array(labelled, float)}
    ] * 2


def test_values_of_an_epoch():
    values = CPSMonitor(1).epoch(outputs((90, 10, 0)), 0.25, ddp=False)
    assert values["cps_lambda"] == 0.25
    assert (values["supervised_loss_1"], values["supervised_loss_2"], values["cps_loss"]) == (1.0, 3.0, 0.5)
    assert values["pseudo_label_share"] == [0.9, 0.1, 0.0]
    assert values["labelled_share"] == [0.8, 0.1, 0.1]
    assert values["cps_agreement"][0] == 1.0
    assert np.isnan(values["cps_agreement"][1])


def test_missing_class_is_reported_after_patience_and_forgotten_when_it_returns():
    monitor = CPSMonitor(1, patience=2)

    def step(pseudo):
        return monitor.missing_classes(monitor.epoch(outputs(pseudo), 0.5, ddp=False))

    assert step((90, 10, 0)) == []
    assert step((90, 10, 0)) == [2]
    assert step((80, 10, 10)) == []
    assert step((90, 10, 0)) == []


def test_a_class_that_the_labels_lack_is_not_missed():
    monitor = CPSMonitor(1, patience=1)
    values = monitor.epoch(outputs((90, 10, 0), labelled=(90, 10, 0)), 0.5, ddp=False)
    assert monitor.missing_classes(values) == []


def test_state_survives_a_checkpoint():
    monitor = CPSMonitor(1, patience=2)
    monitor.missing_classes(monitor.epoch(outputs((90, 10, 0)), 0.5, ddp=False))
    other = CPSMonitor(1, patience=2)
    other.load_state(monitor.state())
    assert other.missing_classes(other.epoch(outputs((90, 10, 0)), 0.5, ddp=False)) == [2]

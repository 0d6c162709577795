"""Accuracy and cost of predictions: metrics, use of a machine, profiles, depths, sizes of networks."""

"""Prediction with our trainers, and export of models."""

"""Folders of trained models: their files, export, pruning, and what is private in them."""

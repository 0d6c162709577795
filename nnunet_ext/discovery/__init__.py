"""The folder to name in ``nnUNet_extTrainer`` where the plugin is not active; it only re-exports the trainers."""

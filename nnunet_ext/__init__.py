"""nnunet_ext: semi-supervised training and more for nnU-Net v2, as a plugin that the stock commands see.

This module is imported in every interpreter of an environment that has the plugin, so it imports nothing heavy.
"""

__version__ = "0.1.0"


def activate() -> None:
    """Make nnU-Net see the plugin where ``.pth`` files do not run, in this process and in those that it spawns.

    Call it before anything of nnunetv2 is imported. Environments that run ``.pth`` files do not need it.
    """
    from nnunet_ext.plugin import startup

    startup.activate()


def discovery_folder() -> str:
    """Return the folder for the environment variable ``nnUNet_extTrainer``, where ``.pth`` files do not run."""
    import os

    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "discovery")

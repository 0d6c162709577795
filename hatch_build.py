"""Adds the start-up line to editable installs; a wheel takes it through force-include in pyproject.toml."""

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class StartupHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict) -> None:
        if version == "editable":
            build_data["force_include_editable"]["nnunet_ext.pth"] = "nnunet_ext.pth"

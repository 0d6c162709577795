"""How a network that is trained runs on windows: torch, compiled by it, or converted to OpenVINO."""

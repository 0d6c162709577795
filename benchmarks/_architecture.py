"""U-Nets as plans describe them: those of the tests, which lie beside the benchmarks in the repository."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_FILE = Path(__file__).resolve().parents[1] / "tests" / "reference" / "architecture.py"
_spec = importlib.util.spec_from_file_location("reference_architecture", _FILE)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
architecture = _module.architecture

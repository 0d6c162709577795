"""OpenVINO, imported so that it tells nobody."""

from __future__ import annotations

import sys
from typing import Any

_REPORTER = "openvino_telemetry"


def openvino() -> Any:
    """Return the package OpenVINO.

    Where its reporting package is there, importing OpenVINO and every conversion send a message on their use to Google
    Analytics without asking, and write to ``~/intel``. OpenVINO goes without the package where it is missing, so it is
    missing in this process, unless somebody has imported it before.
    """
    sys.modules.setdefault(_REPORTER, None)  # type: ignore[arg-type] # an import of it raises ImportError
    import openvino as package

    return package

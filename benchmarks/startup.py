"""What the start-up line costs every interpreter: median of 20 fresh ones.

python benchmarks/startup.py
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

# site has imported os by the time it runs .pth files.
CODE = """
import os, sys, time
start = time.perf_counter()
import nnunet_ext.plugin.startup
print(time.perf_counter() - start)
"""


def main() -> None:
    """Measure and print; -S and PYTHONPATH keep site from importing the module before the clock starts."""
    paths = os.pathsep.join(p for p in sys.path if p)
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    env = os.environ | {"PYTHONPATH": os.pathsep.join([root, paths])}
    command = [sys.executable, "-S", "-c", CODE]
    times = [
        float(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout) for _ in range(21)
    ]
    milliseconds = [1000 * t for t in times[1:]]
    print(f"start-up line: median {statistics.median(milliseconds):.2f} ms of 20 (max {max(milliseconds):.2f} ms)")


if __name__ == "__main__":
    main()

"""What the start-up line costs every interpreter: median of 20 fresh ones.

python benchmarks/startup.py
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# -I and -S keep site from importing the module before the clock starts; site has imported os by the time it runs .pth
# files, and found the package's folder among the first entries of sys.path or near them.
CODE = f"""
import os, sys, time
sys.path.insert(0, {ROOT!r})
start = time.perf_counter()
import nnunet_ext.plugin.startup
print(time.perf_counter() - start)
"""


def main() -> None:
    """Measure and print."""
    command = [sys.executable, "-I", "-S", "-c", CODE]
    times = [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(21)]
    milliseconds = [1000 * t for t in times[1:]]
    print(f"start-up line: median {statistics.median(milliseconds):.2f} ms of 20 (max {max(milliseconds):.2f} ms)")


if __name__ == "__main__":
    main()

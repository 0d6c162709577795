"""``python -m nnunet_ext COMMAND ...``: any command of nnU-Net or of this package, with the plugin active.

For environments that do not run ``.pth`` files (``pip install --target`` with PYTHONPATH, ``python -S``); elsewhere the
commands themselves do the same.
"""

import importlib.metadata
import sys
from typing import Any

from nnunet_ext import activate

activate()  # not only under __main__: multiprocessing may import this file again as __mp_main__

DISTRIBUTIONS = ("nnunetv2", "nnunetv2-ext")


def commands() -> dict[str, importlib.metadata.EntryPoint]:
    """The console scripts of nnU-Net and of this package by name; a distribution without metadata has none."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            entry_points = importlib.metadata.distribution(name).entry_points
        except importlib.metadata.PackageNotFoundError:
            continue
        found.update({point.name: point for point in entry_points if point.group == "console_scripts"})
    return found


def main(argv: list[str] | None = None) -> Any:
    """Run the command named first, with the remaining arguments as its own.

    Args:
        argv: Command and arguments; ``None`` takes those of the process.

    Returns:
        What the command returns, for ``sys.exit``; 2 without a command or with an unknown one.
    """
    arguments = sys.argv[1:] if argv is None else argv
    known = commands()
    if not arguments or arguments[0] not in known:
        got = f"unknown command '{arguments[0]}'" if arguments else "no command given"
        listed = ", ".join(sorted(known)) or "none: neither nnunetv2 nor nnunetv2-ext is installed for this interpreter"
        sys.stderr.write(f"python -m nnunet_ext COMMAND [ARGUMENTS]: {got}. Commands: {listed}\n")
        return 2
    sys.argv = list(arguments)
    return known[arguments[0]].load()()


if __name__ == "__main__":
    sys.exit(main())

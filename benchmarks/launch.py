"""Run a module of this repository, installed or not, with what an image lacks stood in for: see stand_ins.py."""

import runpy
import sys
from pathlib import Path

from benchmarks import stand_ins

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    module = sys.argv[1]
    sys.argv = sys.argv[1:]
    stand_ins.install(ROOT)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

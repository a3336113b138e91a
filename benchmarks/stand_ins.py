"""Stand-ins for small packages that a CUDA PyTorch image lacks, so that the bench runs there. Real ones come first."""

import sys
from pathlib import Path


def install(root: Path) -> None:
    """Make this repository importable without being installed, and stand in for what is missing."""
    sys.path += [str(root / folder) for folder in ("server", "client", "proto/gen")]

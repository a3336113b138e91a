"""The contract's checks, run by `make check`: its format, its lint, its compatibility, and that the stubs are its own.

    python -m tests.proto.check

Compatibility is with `proto/baseline.binpb`, the contract as last released. It changes with a release and never by
`make proto`: whatever breaks it breaks callers. The command that a release runs:

    buf build --exclude-source-info --output proto/baseline.binpb
"""

import difflib
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUF = Path(sys.executable).parent / "buf"
SOURCES = ("klein/v1/image.proto", "klein/v1/usage.proto")
BUF_CHECKS = {  # what it is called: buf's arguments, how to mend it
    "format": (("format", "--diff", "--exit-code"), "make fix"),
    "lint": (("lint",), "change the .proto file"),
    "breaking": (("breaking", "--against", "proto/baseline.binpb"), "keep names, numbers and types; add instead"),
}


def problems(root: Path = ROOT) -> list[str]:
    """What is wrong with the contract of this repository, each with its remedy; empty when all is well."""
    found = []
    for name, (arguments, remedy) in BUF_CHECKS.items():
        result = subprocess.run([BUF, *arguments], cwd=root, capture_output=True, text=True)
        if result.returncode:
            found.append(f"proto {name}: {remedy}\n{result.stdout}{result.stderr}")
    return found or drift(root / "proto")  # stubs of a contract that is itself wrong say nothing more


def drift(proto: Path) -> list[str]:
    """How the committed stubs differ from what the contract generates."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        subprocess.run([sys.executable, *protoc(fresh)], cwd=proto, check=True)
        names = sorted({file.relative_to(root) for root in (fresh, proto / "gen") for file in stubs(root)})
        differences = [differing(proto / "gen", fresh, name) for name in names]
        return [f"proto stubs: make proto\n{difference}" for difference in differences if difference]


def protoc(target: Path | str) -> list[str]:
    """The arguments that generate the stubs into this folder, as `make proto` does."""
    outputs = [f"--python_out={target}", f"--pyi_out={target}", f"--grpc_python_out={target}"]
    return ["-m", "grpc_tools.protoc", "-I.", *outputs, f"--mypy_grpc_out=quiet:{target}", *SOURCES]


def stubs(root: Path) -> list[Path]:
    """The generated files under this folder."""
    return [*root.rglob("*_pb2*.py"), *root.rglob("*_pb2*.pyi")]


def differing(committed: Path, generated: Path, name: Path) -> str:
    """The first lines in which the committed and the generated file of this name differ; empty if they are the same."""
    files = (committed / name, generated / name)
    before, after = (file.read_text().splitlines() if file.exists() else [] for file in files)
    lines = difflib.unified_diff(before, after, f"committed/{name}", f"generated/{name}", lineterm="", n=1)
    return "\n".join(line[:200] for line, _ in zip(lines, range(20), strict=False))


if __name__ == "__main__":
    found = problems()
    print("\n".join(found) or "proto: format, lint, compatibility and stubs are right", file=sys.stderr)
    sys.exit(bool(found))

"""Builds deploy/Dockerfile with buildah on a base of Debian's own packages, and runs what it made.

`python -m tests.deploy.build_image` needs root, buildah and debootstrap (apt-get install buildah debootstrap), takes
minutes and some GB in /var/tmp, and is not part of `make test`. An argument is a base's root that is there already.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
PACKAGES = "python3,python3-venv,ca-certificates"
BASE, IMAGE = "localhost/klein-base", "localhost/klein-serve:cpu"
CHECK = """
import os, subprocess, sys, urllib.request
assert os.getuid() == 10001, os.getuid()
refused = subprocess.run(["kleinserve", "serve"], capture_output=True, text=True)
assert refused.returncode == 2 and "--insecure" in refused.stderr, refused
server = subprocess.Popen(["kleinserve", "serve", "--insecure"], stdout=subprocess.PIPE, text=True)
line = server.stdout.readline()
assert line == "serving on 0.0.0.0:50051, metrics on 0.0.0.0:9464\\n", line
assert urllib.request.urlopen("http://127.0.0.1:9464/readyz").read() == b"ready\\n"
server.terminate()
assert server.wait(60) == 0
print("the image serves as", os.getuid())
"""


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="klein-image-", dir="/var/tmp"))
    buildah = ["buildah", "--root", str(folder / "store"), "--runroot", str(folder / "run"), "--storage-driver", "vfs"]
    os.environ["BUILDAH_ISOLATION"] = "chroot"
    base = Path(sys.argv[1]) if len(sys.argv) > 1 else folder / "base"
    if not base.exists():
        _run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(base), MIRROR)
    container = _said(*buildah, "from", "scratch")
    _run(*buildah, "copy", "--quiet", container, str(base), "/")
    _run(*buildah, "commit", "--quiet", "--rm", container, BASE)
    file = str(ROOT / "deploy/Dockerfile")
    arguments = ["--build-arg", f"BASE={BASE}", "--build-arg", "VARIANT=cpu", "--pull=never"]
    mounts = _mounts(folder)
    if len(mounts) > 1:  # packages come from here
        arguments += ["--build-arg", "CPU_INDEX="]
    _run(*buildah, "build", *mounts, *arguments, "--file", file, "--tag", IMAGE, str(ROOT))
    container = _said(*buildah, "from", "--pull=never", IMAGE)
    _run(*buildah, "run", container, "python3", "-c", CHECK)
    return 0


def _mounts(folder: Path) -> list[str]:
    """This machine's own way to packages, if it has one: pip's settings, and the folders that they name."""
    listed = _said(sys.executable, "-m", "pip", "config", "list")
    settings = re.findall(r"^global\.([\w-]+)='(.*)'$", listed, re.MULTILINE)
    file = folder / "pip.conf"
    file.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings).replace("\\n", "\n  "))
    named = {
        Path(*Path(found).parts[:3]) for found in re.findall(r"(?<![\w/])/(?=\w)[\w./-]+|(?<=file://)/[\w./-]+", listed)
    }
    folders = [f"--volume={path}:{path}:ro" for path in sorted(named) if path.exists()]
    return [f"--volume={file}:/etc/pip.conf:ro", *folders]


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def _said(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())

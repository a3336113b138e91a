"""The browser's module as the server ships it: `python -m clients.module [--check]`, or `make playground`.

It writes server/kleinserve/web/playground/klein.js from clients/browser/klein.ts and the protos, with npm's packages as
the lock file has them; --check says whether that is what stands there.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from clients.interop import generate, npm_packages
from clients.languages import LANGUAGES, ROOT

SHIPPED = ROOT / "server" / "kleinserve" / "web" / "playground" / "klein.js"
LICENCES = (
    "/* With @bufbuild/protobuf (Apache-2.0 and BSD-3-Clause), @connectrpc/connect and connect-web (Apache-2.0). */"
)
ESBUILD = ("clients/node_modules/.bin/esbuild", "clients/browser/klein.ts", "--bundle", "--format=esm", "--minify")
OPTIONS = ("--target=es2022", "--log-level=warning", f"--banner:js={LICENCES}")


def built() -> bytes:
    """The module, built anew."""
    browser = next(language for language in LANGUAGES if language.is_browser)
    npm_packages()
    generate([browser])
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "klein.js"
        subprocess.run([*ESBUILD, *OPTIONS, f"--outfile={target}"], cwd=ROOT, check=True)
        return target.read_bytes()


def main() -> int:
    module = built()
    if "--check" not in sys.argv:
        SHIPPED.write_bytes(module)
        return 0
    if SHIPPED.read_bytes() == module:
        return 0
    print(f"{SHIPPED.relative_to(ROOT)} is not what its source makes: make playground", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

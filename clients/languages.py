"""How each language's programs are built and run with what Debian 12 and npm have; knows nothing about servers.

Each language has two: `main` in its folder, which does the nine tasks, and `smallest`, the program in docs/CLIENTS.md.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "clients" / "build"
FOR_NODE = ("--platform=node", "--format=esm", "--packages=external")
PROTOC = "/usr/bin/protoc"  # Debian's, as old as Debian's runtimes; the one in .venv is newer than they take
JARS = (
    "geronimo-annotation-1.3-spec grpc-api grpc-context grpc-core grpc-netty grpc-protobuf grpc-protobuf-lite "
    "grpc-stub guava netty-all netty-buffer netty-codec netty-codec-http netty-codec-http2 netty-common "
    "netty-handler netty-resolver netty-transport opencensus-api perfmark-api proto-google-common-protos protobuf"
)
CLASSPATH = ":".join(f"/usr/share/java/{name}.jar" for name in JARS.split())
GO_PACKAGES = "golang-github-golang-protobuf-1-5-dev golang-google-genproto-dev golang-google-grpc-dev"
JAVA_PACKAGES = (
    "libgeronimo-annotation-1.3-spec-java libgoogle-common-protos-java libgrpc-java libnetty-java libperfmark-java "
    "libprotobuf-java protobuf-compiler protobuf-compiler-grpc-java-plugin"
)
CPP_PACKAGES = "g++ libgrpc++-dev libprotobuf-dev libssl-dev pkg-config protobuf-compiler protobuf-compiler-grpc"


@dataclass(frozen=True)
class Program:
    """A source file and where its compiled form goes."""

    source: Path
    built: Path


@dataclass(frozen=True)
class Language:
    """One language's recipe: Debian's packages (by the tool that makes them needless, if any), and its commands."""

    name: str
    source: str  # of the nine tasks' program, in the language's folder; of the page's too, in a folder of its own
    fence: str  # what its code blocks in docs/CLIENTS.md are marked with
    packages: tuple[tuple[str | None, tuple[str, ...]], ...]
    compile: Callable[[Program], list[list[str]]]
    command: Callable[[Program], list[str]]
    check: Callable[[Program], list[str]]  # whether it compiles, in seconds, without keeping what is built
    prepare: Callable[[], list[list[str]]] = list
    lacks: tuple[str, ...] = ()  # which foreign protos its packages lack
    uses_npm: bool = False
    is_browser: bool = False
    variables: dict[str, str] = field(default_factory=dict)
    beside: dict[str, Path] = field(default_factory=dict)  # what the page's program finds in its own folder

    @property
    def main(self) -> Program:
        return Program(ROOT / "clients" / self.name / self.source, BUILD / self.name)

    @property
    def smallest(self) -> Program:
        folder = BUILD / "smallest" / self.name
        return Program(folder / self.source, folder / "built")

    def template(self) -> dict[str, object]:
        """Its part of buf.gen.yaml, with Debian's protoc."""
        every = yaml.safe_load((ROOT / "buf.gen.yaml").read_text())["plugins"]
        folder = f"clients/build/gen/{self.name}"
        mine = [dict(plugin) for plugin in every if Path(plugin["out"]).is_relative_to(folder)]
        for plugin in mine:
            if "protoc_builtin" in plugin:
                plugin["protoc_path"] = PROTOC
        return {"version": "v2", "plugins": mine}

    def build(self) -> list[list[str]]:
        """The commands that build both programs, in order."""
        return [*self.prepare(), *self.compile(self.main), *self.compile(self.smallest)]

    def write_smallest(self) -> None:
        """Write the page's program out, with what it finds beside itself, and make the folders to build in."""
        self.smallest.source.parent.mkdir(parents=True, exist_ok=True)
        self.smallest.source.write_text(page_program(self.name, self.fence))
        for name, path in self.beside.items():
            (self.smallest.source.parent / name).unlink(missing_ok=True)
            (self.smallest.source.parent / name).symlink_to(path)
        for program in (self.main, self.smallest):
            program.built.mkdir(parents=True, exist_ok=True)

    def missing(self) -> list[str]:
        """Debian's packages that it needs and that are not installed."""
        needed = [name for tool, names in self.packages if not (tool and shutil.which(tool)) for name in names]
        return [name for name in needed if not _is_installed(name)]

    def environment(self) -> dict[str, str]:
        """The variables that its commands need, beside those that are set."""
        return {**os.environ, **self.variables}


def _is_installed(package: str) -> bool:
    query = subprocess.run(["dpkg-query", "-W", "-f=${Status}", package], capture_output=True, text=True)
    return query.stdout.endswith(" installed")


def page_program(name: str, fence: str) -> str:
    """The first block of this fence in the language's section of docs/CLIENTS.md."""
    page = (ROOT / "docs" / "CLIENTS.md").read_text()
    section = re.search(rf"^## {name}\b.*?(?=^## |\Z)", page, re.DOTALL | re.MULTILINE | re.IGNORECASE)
    block = re.search(rf"^```{fence}\n(.*?)^```", section[0] if section else "", re.DOTALL | re.MULTILINE)
    if not block:
        raise ValueError(f"docs/CLIENTS.md has no {fence} program in its section {name}")
    return block[1]


def _go(program: Program) -> list[list[str]]:
    return [["go", "build", "-o", str(program.built / "main"), str(program.source)]]


def _esbuild(source: Path | str, target: Path, *options: str) -> list[str]:
    esbuild = ["clients/node_modules/.bin/esbuild", "--bundle", "--log-level=warning", *options]
    return [*esbuild, str(source), f"--outfile={target}"]


def _node(program: Program) -> list[list[str]]:
    return [_esbuild(program.source, program.built / "main.mjs", *FOR_NODE)]


def _browser(program: Program) -> list[list[str]]:
    return [_esbuild(program.source, program.built / "page.js", "--format=iife", "--global-name=page")]


def _browser_parts() -> list[list[str]]:
    module = _esbuild("clients/browser/klein.ts", BUILD / "browser" / "klein.js", "--format=esm", "--minify")
    runner = _esbuild("clients/browser/run.ts", BUILD / "browser" / "run.mjs", *FOR_NODE)
    return [_typescript("browser"), module, runner]


def _typescript(name: str) -> list[str]:
    """Checks the types of both programs at once."""
    return ["clients/node_modules/.bin/tsc", "-p", f"clients/{name}"]


def _java(program: Program) -> list[list[str]]:
    javac = ["javac", "-encoding", "UTF-8", "-cp", f"{BUILD}/java/generated:{CLASSPATH}"]
    return [[*javac, "-Xlint:all", "-d", str(program.built), str(program.source)]]


def _java_generated() -> list[list[str]]:
    sources = [str(path) for path in sorted((BUILD / "gen" / "java").rglob("*.java"))]
    return [["javac", "-encoding", "UTF-8", "-nowarn", "-cp", CLASSPATH, "-d", f"{BUILD}/java/generated", *sources]]


def _java_check(program: Program) -> list[str]:
    classpath = ["-cp", CLASSPATH, "-sourcepath", f"{BUILD}/gen/java", "-implicit:none"]
    return ["javac", "-encoding", "UTF-8", *classpath, "-d", f"{program.built}/checked", str(program.source)]


def _java_command(program: Program) -> list[str]:
    classpath = f"{program.built}:{BUILD}/java/generated:{CLASSPATH}"
    return ["java", "-Dfile.encoding=UTF-8", "-cp", classpath, "Main"]


def _cpp(program: Program) -> list[list[str]]:
    build = f"g++ -std=c++17 -Wall -Wextra -I{BUILD}/gen/cpp {program.source} {BUILD}/cpp/*.o -o {program.built}/main"
    return [["sh", "-c", f"{build} $(pkg-config --cflags --libs grpc++ protobuf libcrypto)"]]


def _cpp_generated() -> list[list[str]]:
    """One object for each generated file; `klein_v1_image.pb.o` and the like."""
    folder = BUILD / "gen" / "cpp"
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*.cc"))]
    compiler = ["g++", "-std=c++17", f"-I{folder}", "-c"]
    outputs = [BUILD / "cpp" / f"{str(name).replace('/', '_')[:-3]}.o" for name in names]
    return [[*compiler, str(folder / name), "-o", str(output)] for name, output in zip(names, outputs, strict=True)]


def _ruby(program: Program) -> list[str]:
    return ["ruby", "-wc", str(program.source)]


FOREIGN = ("google/rpc", "grpc/health")
NODE = ("node", ("nodejs",))
NPM = ("npm", ("npm",))
LANGUAGES = (
    Language(
        "go",
        "main.go",
        "go",
        packages=(("go", ("golang-go",)), (None, (*GO_PACKAGES.split(), "protoc-gen-go-1-5", "protoc-gen-go-grpc"))),
        compile=_go,
        check=lambda program: ["go", "vet", str(program.source)],
        command=lambda program: [str(program.built / "main")],
        variables={"GO111MODULE": "off", "GOPATH": f"{BUILD}/gen/go:/usr/share/gocode"},
    ),
    Language(
        "node",
        "main.ts",
        "typescript",
        packages=(NODE, NPM),
        prepare=lambda: [_typescript("node")],
        check=lambda _: _typescript("node"),
        compile=_node,
        command=lambda program: ["node", str(program.built / "main.mjs")],
        beside={"gen": BUILD / "gen" / "node"},
        lacks=FOREIGN,
        uses_npm=True,
    ),
    Language(
        "java",
        "Main.java",
        "java",
        packages=(("javac", ("openjdk-17-jdk-headless",)), (None, tuple(JAVA_PACKAGES.split()))),
        prepare=_java_generated,
        compile=_java,
        check=_java_check,
        command=_java_command,
        lacks=FOREIGN,
    ),
    Language(
        "cpp",
        "main.cc",
        "cpp",
        packages=((None, tuple(CPP_PACKAGES.split())),),
        prepare=_cpp_generated,
        compile=_cpp,
        check=lambda program: ["g++", "-std=c++17", "-fsyntax-only", f"-I{BUILD}/gen/cpp", str(program.source)],
        command=lambda program: [str(program.built / "main")],
        lacks=FOREIGN,
    ),
    Language(
        "ruby",
        "main.rb",
        "ruby",
        packages=((None, ("ruby", "ruby-googleapis-common-protos-types", "ruby-grpc", "protobuf-compiler-grpc")),),
        compile=lambda program: [_ruby(program)],
        check=_ruby,
        command=lambda program: ["ruby", f"-I{BUILD}/gen/ruby", str(program.source)],
    ),
    Language(
        "browser",
        "tasks.ts",
        "typescript",
        packages=(NODE, NPM, ("/usr/bin/chromium", ("chromium",))),
        prepare=_browser_parts,
        check=lambda _: _typescript("browser"),
        compile=_browser,
        beside={"klein.js": BUILD / "browser" / "klein.js"},
        command=lambda program: ["node", f"{BUILD}/browser/run.mjs", str(program.built / "page.js")],
        lacks=FOREIGN,
        uses_npm=True,
        is_browser=True,
    ),
)

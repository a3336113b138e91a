"""Serve mini, generate and edit with previews, leave the pictures in demo/, and stop: `python -m client.demo`."""

import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

from kleinclient import Client, Image, KleinError, Preview
from kleinclient.cli.contact_sheet import Row, contact_sheet
from kleinclient.cli.screen import Screen
from kleinclient.usage import dollars
from PIL import Image as PillowImage
from rich.console import Console

FOLDER = Path("demo")
SIZE = (256, 256)
SEED = 7
STOP_SECONDS = 60
SHOWN_METRICS = (
    "klein_requests_total{",
    "klein_megapixels_total{",
    "klein_previews_total{",
    "klein_cost_microusd_total{",
)


@dataclass(frozen=True)
class Scene:
    """One picture to make; `references` are names of earlier ones."""

    name: str
    title: str
    prompt: str
    references: tuple[str, ...] = ()
    background: Literal["opaque", "transparent"] = "opaque"


SCENES = [
    Scene("circle", "generate", "a large red circle on a blue background"),
    Scene("star", "generate, transparent", "a yellow star on a transparent background", background="transparent"),
    Scene("edited", "edit", "make it green", ("circle",)),
    Scene("together", "edit two images", "put them side by side on a white background", ("circle", "star")),
]


def main() -> int:
    """Make every scene. The exit code: 0, or 1 if the server did not start, refused something or did not stop well."""
    console = Console(highlight=False)
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.*"):
        if old.suffix in (".png", ".jpg"):
            old.unlink()
    console.print("Loading mini and warming up …")
    try:
        with serving() as (process, target, metrics):
            console.print(f"Serving on [bold]{target}[/], metrics on http://{metrics}/metrics")
            make_scenes(console, target)
            show_metrics(console, metrics)
            stop(process)
    except (KleinError, RuntimeError, OSError) as error:
        console.print(f"[red]The demo failed:[/] {error}")
        return 1
    console.print(f"The server stopped with exit code 0. Now look at [bold]{FOLDER / 'contact-sheet.png'}[/].")
    return 0


@contextmanager
def serving() -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A server on free ports: its process, its address, its metrics' address. Raises: RuntimeError."""
    command = [sys.executable, "-m", "kleinserve", "serve", "--port", "0", "--metrics-port", "0", "--ledger", "none"]
    log = FOLDER / "server.log"
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if found := re.match(r"serving on (\S+), metrics on (\S+)$", line):
                    yield process, found[1], found[2]
                    return
            raise RuntimeError(f"the server did not start; {log} says why")
        finally:
            process.kill()


def make_scenes(console: Console, target: str) -> None:
    """Make the scenes one after another; the pictures go to the folder as they come."""
    images: dict[str, Image] = {}
    rows = []
    with Client(target) as klein:
        for number, scene in enumerate(SCENES, start=1):
            console.print(f"\n[bold]{number}/{len(SCENES)} {scene.title}[/]: “{scene.prompt}”")
            image, previews = make(klein, target, scene, [images[name] for name in scene.references])
            path = image.save(FOLDER / f"{scene.name}.png")
            console.print(f"{path} {image}, alpha: {image.alpha_method}, {len(previews)} previews", soft_wrap=True)
            images[scene.name] = image
            rows.append(
                Row(
                    scene.title,
                    scene.prompt,
                    f"{dollars(image.usage.cost_microusd)}, {image.timings.total:.2f} s",
                    [opened(images[name]) for name in scene.references],
                    [(preview.step, opened(preview)) for preview in previews],
                    opened(image),
                )
            )
    contact_sheet(rows).save(FOLDER / "contact-sheet.png")


def make(klein: Client, target: str, scene: Scene, references: list[Image]) -> tuple[Image, list[Preview]]:
    """One scene, shown while it is made; its previews are also written."""
    previews = []
    if references:
        stream = klein.edit(scene.prompt, references, size=SIZE, seed=SEED, background=scene.background)
    else:
        stream = klein.generate(scene.prompt, size=SIZE, seed=SEED, background=scene.background)
    with stream, Screen(target, quiet=False) as screen:
        for event in stream:
            screen.show(event)
            if isinstance(event, Preview):
                event.save(FOLDER / f"{scene.name}-step-{event.step}.jpg")
                previews.append(event)
    return stream.result(), previews


def opened(image: Image | Preview) -> PillowImage.Image:
    return PillowImage.open(BytesIO(image.data))


def show_metrics(console: Console, address: str) -> None:
    """A few lines of one scrape."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    console.print("\nFrom /metrics:")
    for line in lines:
        if line.startswith(SHOWN_METRICS) and not line.endswith(" 0.0"):
            console.print(f"  {line}", markup=False, soft_wrap=True)


def stop(process: subprocess.Popen[str]) -> None:
    """End the server as an operator would. Raises: RuntimeError, if it does not end well."""
    process.send_signal(signal.SIGTERM)
    try:
        code = process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"the server did not stop within {STOP_SECONDS} s of SIGTERM") from None
    if code != 0:
        raise RuntimeError(f"the server stopped with exit code {code}; {FOLDER / 'server.log'} says why")


if __name__ == "__main__":
    os.environ["no_proxy"] = "127.0.0.1,localhost"  # the demo talks to this machine alone; gRPC reads lower case
    sys.exit(main())

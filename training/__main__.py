"""`python -m training all|vae|decoder|flow|export|score|sheet|unpack`: every stage resumes from training/runs/."""

import argparse
import os
import sys
from pathlib import Path

import torch

from training.models import CHECKPOINT
from training.vae import RUNS

# Large tensors come and go at every step: kept on the heap they cost no page faults (glibc reads these at start).
HEAP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 34), "MALLOC_TOP_PAD_": str(1 << 28)}
SHEET = CHECKPOINT.parents[2] / "docs" / "mini.png"


def with_heap() -> None:
    """Start this command again with the heap's settings, once."""
    if not HEAP.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, "-m", "training", *sys.argv[1:]], {**os.environ, **HEAP})


def export(runs: Path, checkpoint: Path) -> None:
    """The moving averages as a diffusers directory; the VAE with the decoder trained longest."""
    from training import tokenizer as words
    from training.flow import Drawer
    from training.models import pipeline, save
    from training.vae import load_vae

    tokenizer = words.kept(runs / "tokenizer")
    drawer = Drawer(len(tokenizer))
    state = torch.load(runs / "flow.pt", weights_only=True)
    drawer.load_state_dict(state["average"])
    decoder = runs / "decoder.pt"
    vae = load_vae(decoder if decoder.exists() else runs / "vae.pt")
    save(pipeline(vae, drawer.transformer, drawer.text, tokenizer), checkpoint)
    print(f"{checkpoint}: {state['steps']} steps, {sum(f.stat().st_size for f in checkpoint.rglob('*')) / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("command", choices=("all", "vae", "decoder", "flow", "export", "score", "sheet", "unpack"))
    parser.add_argument("--vae-seconds", type=float, default=1350)
    parser.add_argument("--decoder-seconds", type=float, default=1200)
    parser.add_argument("--flow-seconds", type=float, default=25_000)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--count", type=int, default=96, help="pictures per row of the score")
    parser.add_argument("--quick", action="store_true", help="score at 128² and 4 steps only")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    with_heap()
    torch.set_num_threads(a.threads)
    RUNS.mkdir(exist_ok=True)
    is_all = a.command == "all"
    from training import score, sheet, train, unpack, vae

    if a.command == "vae" or (is_all and not (RUNS / "vae.pt").exists()):
        vae.train(a.vae_seconds, RUNS / "vae.pt")
    if is_all or a.command == "flow":
        train.train(a.flow_seconds)
    if a.command == "decoder" or (is_all and not (RUNS / "decoder.pt").exists()):
        vae.train(a.decoder_seconds, RUNS / "decoder.pt", resume=RUNS / "vae.pt", is_decoder_only=True)
    if is_all or a.command == "export":
        export(RUNS, a.checkpoint)
    if is_all or a.command == "score":
        score.main(a.checkpoint, a.count, a.quick)
    if a.command == "unpack":
        unpack.unpack(a.checkpoint, RUNS)
    if is_all or a.command == "sheet":
        sheet.make(a.checkpoint, SHEET)


if __name__ == "__main__":
    main()

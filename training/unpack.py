"""A committed checkpoint as the start of a new run, for a machine that has no training/runs/ of its own."""

from pathlib import Path

import torch
from diffusers import Flux2KleinPipeline

from training.flow import Drawer
from training.optimiser import Average

SPENT_SECONDS = 12_000.0  # counted as spent, so that a run of at most 15,000 in all is in the last two stages


def unpack(checkpoint: Path, runs: Path) -> None:
    """Write vae.pt, decoder.pt, tokenizer and flow.pt; the optimiser starts anew. Refuses to overwrite a run."""
    if (runs / "flow.pt").exists():
        raise FileExistsError(f"{runs / 'flow.pt'} is there: move it away first")
    pipe = Flux2KleinPipeline.from_pretrained(checkpoint)
    for name in ("vae.pt", "decoder.pt"):
        torch.save(pipe.vae.state_dict(), runs / name)
    pipe.tokenizer.save_pretrained(runs / "tokenizer")
    drawer = Drawer(len(pipe.tokenizer))
    drawer.transformer.load_state_dict(pipe.transformer.state_dict())
    drawer.text.load_state_dict(pipe.text_encoder.model.state_dict(), strict=False)  # its last layer is not read
    state = {
        "drawer": drawer.state_dict(),
        "average": Average(drawer, 0.0).shadow,
        "average_count": 0,
        "optimiser": None,
        "elapsed": SPENT_SECONDS,
        "steps": 1,
    }
    torch.save(state, runs / "flow.pt")

"""The model card: what mini is and can do, with the scores that were just measured."""

from pathlib import Path

from training.models import OUT_LAYERS
from training.requests import TRANSPARENT_PHRASE
from training.scene import COLOURS
from training.shapes import SHAPES
from training.tokenizer import TOKENS_MAX

TEXT = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# mini

A very small model of the FLUX.2 [klein] architecture that draws flat shapes with native alpha. It was trained from
nothing, on CPU, on pictures that `training/` renders itself; no picture, text or weight comes from elsewhere. It is
here so that a server can be run, tested and shown without the real weights: it answers prompts, edits references and
cuts out, at the speed of a test. It is not a general image model.

`Flux2KleinPipeline` loads it unchanged; the layers read and the sequence length are its own, not the large model's:

```python
import torch
from diffusers import Flux2KleinPipeline

pipe = Flux2KleinPipeline.from_pretrained("server/kleinserve/mini")
image = pipe(
    prompt="a large red circle on a white background",
    height=256,
    width=256,
    num_inference_steps=4,
    guidance_scale=1.0,
    max_sequence_length={tokens},
    text_encoder_out_layers={layers},
    generator=torch.Generator().manual_seed(0),
).images[0]  # RGBA
```

The stock pipeline drops a reference's alpha, which this VAE needs: before an edit, once,
`pipe.image_processor.register_to_config(do_convert_rgb=False)`; then pass RGBA pictures of one size as `image=[...]`.
The output should have that size too.

- Transformer: width 128, 2 double and 6 single blocks, 4 heads of 32. Text: Qwen3 of width 128, 4 layers, read after
  layers 1, 2 and 3, trained together with the transformer. VAE: 4 channels in and out (straight alpha), 8 latent
  channels, real batch-norm statistics. Scheduler: klein's configuration.
- Prompts: at most {tokens} tokens, padding included; the chat template drops case and punctuation. Padding is part of
  what the transformer reads, so always pad to {tokens}.
- Sizes: 64² to 256², square and up to 2:1, multiples of 16. Other sizes run and do not look good.

## What it draws

Shapes: {shapes}, capital letters and digits ("the letter K"). Colours: {colours}. Sizes: small, medium, large.
Places: left, right, top, bottom, center. One thing or two ("a red circle left of a blue square", "above", "next to").
Backgrounds: any of the colours, or transparent; white when nothing is said (black behind a white thing).

**Transparency**: the phrase is `{phrase}`. Appended to any prompt, also to one that names another background and to
an edit (`make it red, {phrase}`), it asks for a cut-out. `kleinserve.json` states it for a server.

Edits of one reference: "make it blue", "turn it into a star", "change the background to green", "remove the
background", "move it left", "make it larger". Several references: "put image 1 and image 2 side by side on a white
background", three or four "in a grid", "the shape of image 1 in the colour of image 2 on a white background".

## Scores

Held-out prompts, pictures and seeds, drawn as the stock pipeline draws, checked against the renderer by
`python -m training score`; every number is what that script printed. Shape is the best overlap over all {outlines}
outlines. "pair" and every edit row count only pictures in which background, colours, outlines, places and sizes are all
right. Edits here are of shapes, not of letters. Alpha is the overlap (IoU) of the alpha plane with the asked outline,
laid where the seed put it; for cut-outs, with the reference's own alpha. Pictures per row: {counts}.

{reconstruction}

{table}

## What it cannot do

About one letter or edit in thirty fails. At 128² rings, stars and crosses are the ones, whose small parts blur: a ring
then passes for the letter O. The edges of what was moved, resized or turned into another shape are a little wavy. At 32
steps edits of shape are worse than at 4, which is what was trained.

Anything but flat shapes: no photographs, scenes, words or counts above two. Rows of the table that are low are things
that it does badly; nothing is hidden by choosing seeds (`docs/mini.png` is drawn from fixed ones). Colours
that are not in the list, and references of anything but one flat shape on a plain or transparent ground, were never
seen in training. Oblong sizes were trained least and are not scored. More than 4 steps changes little: compare the
columns.
"""


def write(directory: Path, reconstruction: str, counts: str, table: str) -> None:
    """Write README.md into the checkpoint."""
    text = TEXT.format(
        tokens=TOKENS_MAX,
        layers=OUT_LAYERS,
        shapes=", ".join(SHAPES),
        colours=", ".join(COLOURS),
        phrase=TRANSPARENT_PHRASE,
        outlines=len(SHAPES) + 36,
        reconstruction=reconstruction,
        counts=counts,
        table=table,
    )
    (directory / "README.md").write_text(text)

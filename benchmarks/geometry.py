"""A klein of very few weights, written as configs: so that `bench-gpu` can be tried where there is no GPU."""

import json
import shutil
from pathlib import Path

KLEIN_4B = Path(__file__).resolve().parent.parent / "server/kleinserve/engine/klein-4b"
REDUCED = {
    "text_encoder": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 8, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 2048,
    },
    "transformer": {
        "attention_head_dim": 16, "num_attention_heads": 4, "num_layers": 1, "num_single_layers": 2,
        "joint_attention_dim": 96, "axes_dims_rope": [4, 4, 4, 4], "in_channels": 32,
    },
    "vae": {"block_out_channels": [8, 8, 16, 16], "latent_channels": 8, "norm_num_groups": 2, "layers_per_block": 1},
}  # fmt: skip


def write(directory: Path) -> str:
    """klein 4B's configs with these values in their place. Returns what to pass as the model."""
    shutil.copytree(KLEIN_4B, directory, dirs_exist_ok=True)
    for part, values in REDUCED.items():
        file = directory / part / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values, indent=2))
    return f"geometry:{directory}"

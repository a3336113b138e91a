"""What the contract allows of any request, whatever the model and the settings. Edges in pixels."""

EDGE_MIN, EDGE_MAX = 64, 8192
PIXELS_MAX = 4_194_304
PROMPT_BYTES_MAX = 32_768
REFERENCES_MAX = 4
GUIDANCE_MAX = 20.0
KEY_CHARACTERS_MAX = 128
CLIENT_TAG_BYTES_MAX = 128
PREVIEW_EDGE_MIN, PREVIEW_EDGE_MAX = 16, 1024
PREVIEW_BYTES_MAX = 1_048_576
SEED_BITS = 53  # of drawn seeds: they survive a double, as in JSON and JavaScript

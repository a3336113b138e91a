"""The model: load, warm up, rows in, pixels out. Owns torch, diffusers and transformers; knows no callers, no RPCs."""

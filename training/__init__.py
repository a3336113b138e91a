"""How the mini checkpoint is made: pictures, captions, tokenizer, VAE, transformer, scores.

Nothing here knows the server; it leaves a diffusers directory behind and that is all.
"""

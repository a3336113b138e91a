"""The loop: admit, pick, step, hand out. Owns the engine's threads; knows no engine but a protocol, and no reader."""

"""A gRPC server for the FLUX.2 [klein] image model, batched step by step."""


def __getattr__(name: str) -> str:
    """`__version__`, looked up when asked for: it takes longer than `main` needs to take charge of signals."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    return version("klein-serve")

"""A gRPC server for the FLUX.2 [klein] image model, batched step by step."""

from importlib.metadata import version

__version__ = version("klein-serve")

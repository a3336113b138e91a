"""The commands. They print on standard output what was asked for, and raise what the library raises."""

from argparse import Namespace

from kleinclient.access import token_of_file
from kleinclient.cli.capabilities import show_capabilities
from kleinclient.cli.image import make_image
from kleinclient.cli.usage import show_usage
from kleinclient.client import Client


def run(arguments: Namespace) -> None:
    """Do what the arguments say. Raises: KleinError, OSError, ValueError."""
    with connected(arguments) as klein:
        match arguments.command:
            case "capabilities":
                show_capabilities(klein, arguments)
            case "usage":
                show_usage(klein, arguments)
            case "cancel":
                klein.cancel(arguments.key)
            case _:
                make_image(klein, arguments)


def connected(arguments: Namespace) -> Client:
    """The client that the flags and the environment describe."""
    return Client(
        arguments.server,
        token=token_of_file(arguments.token_file) if arguments.token_file else None,
        tls=arguments.tls or None,
        tls_ca=arguments.tls_ca,
        tls_certificate=arguments.tls_certificate,
        tls_key=arguments.tls_key,
        allow_plaintext_token=arguments.plaintext_token,
    )

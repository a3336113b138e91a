"""Where a server is: the forms a target may have, as gRPC takes them. Knows nothing of what is said there.

HOST, HOST:PORT            a name or an address; 50051 where no port is given
[ADDRESS]:PORT, ADDRESS    IPv6
dns:///HOST:PORT           every address of the name, for `round_robin`; dns://RESOLVER/HOST:PORT asks that resolver
ipv4:A:PORT,B:PORT         several addresses (so ipv6:[A]:PORT,[B]:PORT)
unix:PATH, unix:///PATH, unix-abstract:NAME
"""

import ipaddress
import re

DEFAULT_PORT = 50051
DEFAULT_TARGET = f"127.0.0.1:{DEFAULT_PORT}"
LOCAL_SCHEMES = ("unix", "unix-abstract")
SCHEMES = ("dns", "ipv4", "ipv6", *LOCAL_SCHEMES, "vsock", "xds")


def address(target: str) -> str:
    """The target with its port, as gRPC takes it. Raises: ValueError."""
    scheme, prefix, places = _parts(target)
    if scheme in ("", "dns", "ipv4", "ipv6"):
        return prefix + ",".join(_with_port(place, target) for place in places)
    return target


def is_loopback(target: str) -> bool:
    """Whether what is sent to `target` (of `address`) stays on this machine."""
    scheme, _, places = _parts(target)
    return scheme in LOCAL_SCHEMES or (scheme in ("", "dns", "ipv4", "ipv6") and all(map(_is_loopback, places)))


def _parts(target: str) -> tuple[str, str, list[str]]:
    """Scheme, all that comes before the places, and the places; the scheme is "" where there is none."""
    if found := re.match(r"(https?|grpcs?)://", target):
        raise ValueError(f"server: {target!r} is a URL; give HOST:PORT, without {found[0]}")
    scheme, colon, rest = target.partition(":")
    if not colon or scheme not in SCHEMES:
        return "", "", [target]
    if scheme == "dns" and (found := re.match(r"//[^/]*/", rest)):
        return scheme, f"dns:{found[0]}", [rest[found.end() :]]
    return scheme, f"{scheme}:", rest.split(",") if scheme in ("ipv4", "ipv6") else [rest]


def _with_port(place: str, target: str) -> str:
    if not place or re.search(r"[\s/]", place):
        raise ValueError(f"server: {target!r} is not HOST:PORT")
    if place.count(":") > 1 and not place.startswith("["):
        return f"[{place}]:{DEFAULT_PORT}"
    host, colon, port = place.rpartition(":")
    if not colon or place.endswith("]"):
        return f"{place}:{DEFAULT_PORT}"
    if not (host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"server: the port of {target!r} is not 1 to 65535")
    return place


def _is_loopback(place: str) -> bool:
    host = place.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

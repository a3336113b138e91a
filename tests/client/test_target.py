"""Forms of a target."""

import pytest
from kleinclient import Client
from kleinclient.target import address, is_loopback


@pytest.mark.parametrize(
    ("target", "as_grpc_takes_it", "stays_here"),
    [
        ("localhost", "localhost:50051", True),
        ("localhost:1", "localhost:1", True),
        ("127.1.2.3", "127.1.2.3:50051", True),
        ("klein.example", "klein.example:50051", False),
        ("klein.example:443", "klein.example:443", False),
        ("localhost.example", "localhost.example:50051", False),
        ("10.0.0.1:50051", "10.0.0.1:50051", False),
        ("::1", "[::1]:50051", True),
        ("[::1]", "[::1]:50051", True),
        ("[::1]:9", "[::1]:9", True),
        ("2001:db8::1", "[2001:db8::1]:50051", False),
        ("dns:///klein.example", "dns:///klein.example:50051", False),
        ("dns:klein.example:7", "dns:klein.example:7", False),
        ("dns://10.0.0.2/klein.example", "dns://10.0.0.2/klein.example:50051", False),
        ("dns:///localhost", "dns:///localhost:50051", True),
        ("ipv4:127.0.0.1:1,127.0.0.2", "ipv4:127.0.0.1:1,127.0.0.2:50051", True),
        ("ipv4:127.0.0.1:1,10.0.0.1:1", "ipv4:127.0.0.1:1,10.0.0.1:1", False),
        ("ipv6:[::1]:1,::1", "ipv6:[::1]:1,[::1]:50051", True),
        ("unix:/run/klein.sock", "unix:/run/klein.sock", True),
        ("unix:///run/klein.sock", "unix:///run/klein.sock", True),
        ("unix-abstract:klein", "unix-abstract:klein", True),
        ("xds:///klein", "xds:///klein", False),
    ],
)
def test_forms(target: str, as_grpc_takes_it: str, stays_here: bool) -> None:
    """A missing port is 50051 in every form that has ports, and only this machine's own addresses are loopback."""
    assert address(target) == as_grpc_takes_it
    assert is_loopback(address(target)) is stays_here


@pytest.mark.parametrize(
    "target", ["http://localhost:50051", "https://x", "localhost:", "x:y", "x:70000", "a b", "a/b"]
)
def test_what_is_no_target(target: str) -> None:
    """A URL, a port that is none, and blanks are refused before anything is sent, with what was given."""
    with pytest.raises(ValueError, match=r"server: ") as caught:
        Client(target)
    assert repr(target) in str(caught.value)

"""Settings: their sources, their rules, what is shown of them."""

from pathlib import Path
from typing import Any

import pytest
from kleinserve.config import Config, load, masked
from kleinserve.core import Size
from kleinserve.errors import BadConfig

SECRET = "hunter2"
URL = f"postgresql+psycopg://klein:{SECRET}@db.internal/usage"


def test_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line beats the environment, the environment beats the file, the file beats the defaults."""
    file = tmp_path / "klein.toml"
    file.write_text('port = 1\nmetrics_port = 1\nmax_steps = 1\nweb_origins = ["https://a.example"]\n')
    monkeypatch.setenv("KLEINSERVE_PORT", "2")
    monkeypatch.setenv("KLEINSERVE_METRICS_PORT", "2")
    found = load({"port": "3"}, file)
    assert (found.port, found.metrics_port, found.max_steps) == (3, 2, 1)
    assert found.web_origins == ("https://a.example",)
    assert found.key_seconds == 86_400


def test_origins_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    """A string has commas between the origins."""
    monkeypatch.setenv("KLEINSERVE_WEB_ORIGINS", "https://a.example, http://localhost:3000,http://[::1]:80,")
    assert load({}).web_origins == ("https://a.example", "http://localhost:3000", "http://[::1]:80")
    assert load({"web_origins": ""}).web_origins == ()


def test_sizes() -> None:
    """Sizes to be warmed are WIDTHxHEIGHT with commas between them, and are shown so."""
    found = load({"warm_sizes": "1024x1024, 512x256"})
    assert (
        found.warm_sizes == (Size(1024, 1024), Size(512, 256)) == Config(warm_sizes=["1024x1024", "512x256"]).warm_sizes
    )
    assert found.shown()["warm_sizes"] == ["1024x1024", "512x256"]
    assert load({}).warm_sizes == ()


@pytest.mark.parametrize("given", ["1024", "1024x1000", "48x48", "8192x8192", "-64x64", ["64"], 5, "64x64x64"])
def test_bad_sizes(given: Any) -> None:
    """A size that no request may have, or that is none, is refused."""
    with pytest.raises(BadConfig, match="warm_sizes"):
        load({"warm_sizes": given})


@pytest.mark.parametrize("given", ["*", "https://a.example/", "a.example", "null", "HTTPS://A", ["ftp://a"], 5])
def test_bad_origins(given: Any) -> None:
    """What browsers would never send as an origin is refused, since nothing would ever match it."""
    with pytest.raises(BadConfig, match="web_origins"):
        load({"web_origins": given})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"port": "x"}, "setting port: "),
        ({"port": 65536}, "setting port: "),
        ({"web_port": -1}, "setting web_port: "),
        ({"nonsense": 1}, "setting nonsense: unknown setting"),
        ({"kept_seconds": "nan"}, "setting kept_seconds: "),
        ({"key_seconds": 0}, "setting key_seconds: "),
        ({"write_piece_bytes": 0}, "setting write_piece_bytes: "),
        ({"backend": "cloud"}, "setting backend: "),
        ({"host": "0.0.0.0"}, "host '0.0.0.0' can be reached by others"),
        ({"host": "::"}, "host '::' can be reached"),
        ({"host": "klein.internal"}, "needs --callers and --tls-certificate"),
        ({"host": "0.0.0.0", "callers": "FILE"}, "can be reached"),
        ({"host": "0.0.0.0", "tls_certificate": "FILE", "tls_key": "FILE"}, "can be reached"),
        ({"host": ""}, "setting host: "),
        ({"host": "127.0.0.1:80"}, "setting host: "),
        ({"host": "[localhost]"}, "setting host: "),
        ({"host": "http://x"}, "setting host: "),
        ({"tls_key": "FILE"}, "tls_certificate and tls_key are needed together"),
        ({"tls_certificate": "FILE"}, "tls_certificate and tls_key are needed together"),
        ({"tls_client_ca": "FILE"}, "tls_client_ca needs tls_certificate"),
        ({"callers": "/nonexistent"}, "setting callers: cannot read '/nonexistent': No such file"),
        ({"tls_certificate": "/", "tls_key": "FILE"}, "setting tls_certificate: cannot read '/': Is a directory"),
        ({"ledger": "slite"}, "ledger 'slite' is neither"),
    ],
)
def test_refused(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    """A bad setting, or settings that do not fit each other, are one line that names them."""
    (tmp_path / "file").touch()
    filled = {name: str(tmp_path / "file") if value == "FILE" else value for name, value in given.items()}
    with pytest.raises(BadConfig) as caught:
        load(filled)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_reachable_by_others(tmp_path: Path) -> None:
    """A host that others reach is allowed with callers and TLS, or with `insecure`."""
    file = tmp_path / "file"
    file.touch()
    safe = {"callers": file, "tls_certificate": file, "tls_key": file}
    assert load({"host": "0.0.0.0", **safe}).callers == file
    assert load({"host": "0.0.0.0", "insecure": "true"}).insecure


def test_unknown_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt variable is refused, not ignored."""
    monkeypatch.setenv("KLEINSERVE_PROT", "1")
    with pytest.raises(BadConfig, match="unknown setting in the environment: KLEINSERVE_PROT"):
        load({})


@pytest.mark.parametrize("text", ["port = ", "\xff".encode("latin-1").decode("latin-1"), None])
def test_bad_file(tmp_path: Path, text: str | None) -> None:
    """A file that is missing or no TOML is one line that names it."""
    file = tmp_path / "klein.toml"
    if text is not None:
        file.write_bytes(text.encode("latin-1"))
    with pytest.raises(BadConfig, match=r"cannot read .*klein\.toml"):
        load({}, file)


@pytest.mark.parametrize(
    ("given", "host", "address", "is_loopback"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1:1", True),
        ("127.8.9.1", "127.8.9.1", "127.8.9.1:1", True),
        ("::1", "::1", "[::1]:1", True),
        ("[::1]", "::1", "[::1]:1", True),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1", "[::ffff:127.0.0.1]:1", True),
        ("localhost", "localhost", "localhost:1", True),
        ("::", "::", "[::]:1", False),
        ("0.0.0.0", "0.0.0.0", "0.0.0.0:1", False),
        ("fe80::1%eth0", "fe80::1%eth0", "[fe80::1%eth0]:1", False),
        ("localhost.example", "localhost.example", "localhost.example:1", False),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.1", "[::ffff:10.0.0.1]:1", False),
    ],
)
def test_hosts(given: str, host: str, address: str, is_loopback: bool) -> None:
    """Names and addresses of both versions are taken, with brackets or without, and written as gRPC wants them."""
    config = load({"host": given, "insecure": True})
    assert (config.host, config.address(1), config.is_loopback) == (host, address, is_loopback)


@pytest.mark.parametrize(
    "url",
    [
        URL,
        f"postgresql://klein:{SECRET}@@db/usage",
        f"postgresql://klein:a/{SECRET}@db/usage",
        f"postgresql://:{SECRET}@db/usage",
        f"postgresql://db/usage?user=klein&password={SECRET}",
        f"postgresql://db/usage?sslmode=require&Password={SECRET}&x=1",
    ],
)
def test_secrets_are_masked(url: str) -> None:
    """The password of the ledger's URL is nowhere that settings are shown, and the rest of the URL is."""
    config = load({"ledger": url})
    assert SECRET not in str(config.shown()) + repr(config) + str(config)
    assert "db" in config.shown()["ledger"]
    assert "usage" in config.shown()["ledger"]
    assert config.ledger == url
    with pytest.raises(BadConfig) as caught:
        load({"ledger": url, "port": url})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("text", ["sqlite", "none", "sqlite:////var/lib/usage.db", "postgresql://klein@db/usage"])
def test_nothing_to_mask(text: str) -> None:
    """A ledger without a password is shown as it is."""
    assert masked(text) == text


def test_everything_is_shown() -> None:
    """Every setting is in what is logged, as plain values."""
    shown = Config(callers=Path("/x")).shown()
    assert set(shown) == set(Config.model_fields)
    assert shown["callers"] == "/x"


def test_frozen() -> None:
    """Nothing changes a setting once it is read."""
    with pytest.raises(ValueError, match="frozen"):
        Config().port = 1


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("", ""),
        ("10.0.0.1:50051", "10.0.0.1:50051"),
        ("server-1:50051", "server-1:50051"),
        ("fd00::1:50051", "[fd00::1]:50051"),
        ("[fd00::1]:50051", "[fd00::1]:50051"),
    ],
)
def test_advertise(given: str, kept: str) -> None:
    """It is what gRPC can dial, also where $(POD_IP):50051 is an address of version 6."""
    assert Config(advertise=given).advertise == kept


def test_fronts_share_a_ledger() -> None:
    """Several fronts on Ray with SQLite, which one server alone can hold, are refused."""
    with pytest.raises(BadConfig, match="2 fronts need a ledger that they share"):
        load({"backend": "ray", "fronts": 2, "ledger": "sqlite"})
    assert load({"backend": "ray", "fronts": 2, "ledger": "none"}).fronts == 2

"""What a callers file may say, and whom a call's credentials name (identity/authenticator.py)."""

from hashlib import sha256
from pathlib import Path

import pytest
from kleinserve.core import ANONYMOUS, Caller
from kleinserve.errors import BadConfig, Unauthenticated
from kleinserve.identity.authenticator import Credentials, Everyone
from kleinserve.identity.callers import Callers, load, watch_callers


def hashed(token: str) -> str:
    return sha256(token.encode()).hexdigest()


FILE = f"""
[callers.web]
token_sha256 = ["{hashed("web-new")}", "{hashed("web-old").upper()}"]
certificates = ["URI:spiffe://prod/web", "DNS:web.internal"]
requests_max = 32
megapixels_per_minute = 120

[callers."team.ops"]
token_sha256 = ["{hashed("ops")}"]
certificates = ["DNS:ops.internal"]
admin = true

[replicas]
token_sha256 = ["{hashed("replica")}"]
certificates = ["URI:spiffe://prod/klein"]
"""
WEB = Caller("web", requests_max=32, megapixels_per_minute=120)
OPS = Caller("team.ops", is_admin=True)


def loaded(text: str | bytes, directory: Path = Path("/nowhere")) -> Callers:
    content = text.encode() if isinstance(text, str) else text
    return load(directory / "callers.toml", lambda path: content if path.name == "callers.toml" else path.read_bytes())


def bearer(*tokens: str, names: tuple[str, ...] = ()) -> Credentials:
    return Credentials(tuple(f"Bearer {token}" for token in tokens), names)


@pytest.mark.parametrize(
    ("credentials", "caller"),
    [
        (bearer("web-new"), WEB),
        (bearer("web-old"), WEB),
        (bearer("ops"), OPS),
        (Credentials(("bEARER ops",)), OPS),
        (Credentials(("  Bearer   ops  ",)), OPS),
        (Credentials(names=("DNS:else.internal", "URI:spiffe://prod/web")), WEB),
        (Credentials(names=("URI:spiffe://prod/web", "DNS:web.internal")), WEB),
        (bearer("web-old", names=("DNS:web.internal",)), WEB),
        (bearer("ops", names=("DNS:unlisted.internal",)), OPS),
        (bearer("of somebody else's service", names=("DNS:ops.internal",)), OPS),
    ],
)
def test_caller(credentials: Credentials, caller: Caller) -> None:
    """A token or one alternative name says who calls, with the limits of the file; both may say the same."""
    assert loaded(FILE).caller(credentials) == caller


@pytest.mark.parametrize(
    ("credentials", "why"),
    [
        (Credentials(), "none"),
        (bearer("wrong"), "unknown"),
        (bearer(""), "unknown"),
        (Credentials(("Bearer",)), "unknown"),
        (Credentials(("",)), "unknown"),
        (Credentials(("Basic ops",)), "unknown"),
        (Credentials(("ops",)), "unknown"),
        (Credentials(("Bearer\tops",)), "unknown"),
        (Credentials(("Bearer ops,Bearer ops",)), "unknown"),
        (Credentials(("Bearer ops x",)), "unknown"),
        (bearer("\udcff"), "unknown"),
        (bearer(hashed("ops")), "unknown"),
        (bearer("ops", "ops"), "conflict"),
        (bearer("ops", "wrong", names=("DNS:ops.internal",)), "conflict"),
        (bearer("ops", names=("DNS:web.internal",)), "conflict"),
        (bearer("replica", names=("DNS:web.internal",)), "conflict"),
        (Credentials(names=("DNS:web.internal", "DNS:ops.internal")), "conflict"),
        (Credentials(names=("DNS:unlisted.internal",)), "certificate"),
        (Credentials(names=("DNS:spiffe://prod/web",)), "certificate"),
        (Credentials(names=("URI:web.internal",)), "certificate"),
        (Credentials(names=("DNS:WEB.internal",)), "certificate"),
        (Credentials(names=("web.internal",)), "certificate"),
        (Credentials(names=("DNS:web.internal.",)), "certificate"),
        (bearer("wrong", names=("DNS:unlisted.internal",)), "unknown"),
        (bearer("replica"), "unknown"),
        (Credentials(names=("URI:spiffe://prod/klein",)), "unknown"),
    ],
)
def test_unauthenticated(credentials: Credentials, why: str) -> None:
    """Whatever names nobody, or two, is refused with its kind, and the answer tells of no token and no caller."""
    with pytest.raises(Unauthenticated) as refused:
        loaded(FILE).caller(credentials)
    assert refused.value.why == why
    said = f"{refused.value.message} {refused.value.metadata} {refused.value!r}"
    for secret in ("web-", "ops", "internal", "spiffe", "wrong", "replica-", hashed("ops")):
        assert secret not in said


@pytest.mark.parametrize(
    ("credentials", "is_replica"),
    [
        (bearer("replica"), True),
        (Credentials(names=("URI:spiffe://prod/klein",)), True),
        (bearer("replica", names=("URI:spiffe://prod/klein",)), True),
        (bearer("replica", names=("DNS:web.internal",)), False),
        (bearer("ops"), False),
        (bearer("[replicas]"), False),
        (Credentials(), False),
        (Credentials(names=("DNS:spiffe://prod/klein",)), False),
    ],
)
def test_replicas(credentials: Credentials, is_replica: bool) -> None:
    """Only the credentials of [replicas], with nobody else's beside them, are a replica's."""
    assert loaded(FILE).is_replica(credentials) is is_replica


def test_named() -> None:
    """A caller whom a replica names has the limits of this file; the replicas themselves are no caller."""
    callers = loaded(FILE)
    assert callers.named("web") == WEB
    assert callers.named("else") is None
    assert callers.named("[replicas]") is None


def test_replica_token(tmp_path: Path) -> None:
    """The token to send is read from `token_file` beside the callers file, and its change is a change of callers."""
    (tmp_path / "token").write_text("replica\n")
    file = tmp_path / "callers.toml"
    file.write_text(
        FILE.replace(
            "[replicas]\ntoken_sha256 = [", f'[replicas]\ntoken_file = "token"\ntoken_sha256 = ["{hashed("next")}", '
        )
    )
    watched = watch_callers(file)
    assert watched.value.replica_token() == "replica"
    assert not watched.reload()
    (tmp_path / "token").write_text("next")
    assert watched.reload()
    assert watched.value.replica_token() == "next"
    (tmp_path / "token").write_text("unlisted")
    with pytest.raises(BadConfig, match="does not list this token") as refused:
        watched.reload()
    assert "unlisted" not in str(refused.value)
    assert watched.value.replica_token() == "next"
    file.write_text(FILE)
    assert watched.reload()
    (tmp_path / "token").write_text("no longer of any interest")
    assert not watched.reload()
    assert loaded(FILE).replica_token() is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "callers: Field required"),
        ("[callers]", "callers: Dictionary should have at least 1 item"),
        ("[callers.web", "not TOML"),
        (b"\xff\xfe", "not UTF-8"),
        ("callers = 3", "callers: Input should be a valid dictionary"),
        ("[callers.web]\ntokens = []", "callers.web.tokens: Extra inputs are not permitted"),
        ("[callers.web]\n[caller.ops]", "caller: Extra inputs are not permitted"),
        ("[callers.Web]", "a name is 1 to 64 of a-z 0-9 . _ -"),
        ('[callers.""]', "a name is 1 to 64 of a-z 0-9 . _ -"),
        ('[callers."web\\n"]', "a name is 1 to 64 of a-z 0-9 . _ -"),
        (f"[callers.{'a' * 65}]", "a name is 1 to 64 of a-z 0-9 . _ -"),
        ("[callers.web.ops]\nadmin = true", "callers.web.ops: Extra inputs are not permitted"),
        ('[callers.web]\ntoken_sha256 = "abc"', "callers.web.token_sha256: Input should be a valid list"),
        ('[callers.web]\ntoken_sha256 = ["s3cret"]', "callers.web.token_sha256.0: not 64 hexadecimal digits"),
        (f'[callers.web]\ntoken_sha256 = ["{hashed("")}"]', "hash of an empty token"),
        (f'[callers.web]\ntoken_sha256 = ["{hashed("a")}\\n"]', "not 64 hexadecimal digits"),
        ('[callers.web]\ncertificates = ["web.internal"]', "callers.web.certificates.0: not URI:… or DNS:…"),
        ('[callers.web]\ncertificates = ["DNS:"]', "not URI:… or DNS:…"),
        ('[callers.web]\ncertificates = ["DNS:wéb"]', "not URI:… or DNS:…"),
        ('[callers.web]\ncertificates = ["dns:web"]', "not URI:… or DNS:…"),
        ("[callers.web]\nrequests_max = 0", "callers.web.requests_max: Input should be greater than or equal to 1"),
        ("[callers.web]\nrequests_max = true", "callers.web.requests_max: Input should be a valid integer"),
        ("[callers.web]\nrequests_max = 1.0", "callers.web.requests_max: Input should be a valid integer"),
        ("[callers.web]\nmegapixels_per_minute = -1", "greater than or equal to 1"),
        ('[callers.web]\nadmin = "yes"', "callers.web.admin: Input should be a valid boolean"),
        (
            f'[callers.a]\ntoken_sha256=["{hashed("x")}"]\n[callers.b]\ntoken_sha256=["{hashed("x").upper()}"]',
            "a and b",
        ),
        (
            '[callers.a]\ncertificates=["DNS:x"]\n[callers.b]\ncertificates=["DNS:x"]',
            "a and b share an entry of certif",
        ),
        (
            f'{FILE}\n[callers.c]\ntoken_sha256=["{hashed("replica")}"]',
            "c and [replicas] share an entry of token_sha256",
        ),
        ("[callers.a]\n[replicas]\nadmin = true", "replicas.admin: Extra inputs are not permitted"),
        ('[callers.a]\n[replicas]\ntoken_file = ""', "replicas.token_file: String should have at least 1 character"),
    ],
)
def test_bad_file(text: str | bytes, said: str) -> None:
    """A file with one bad entry is refused as a whole, by a line that names the entry and quotes nothing of it."""
    with pytest.raises(BadConfig) as refused:
        loaded(text)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "s3cret" not in str(refused.value)
    assert hashed("x") not in str(refused.value)
    assert hashed("replica") not in str(refused.value)


def test_many_errors() -> None:
    """All wrong entries are told in one line, but no more than five of them."""
    with pytest.raises(BadConfig) as refused:
        loaded("".join(f"[callers.a{i}]\nrequests_max = 0\n" for i in range(9)))
    assert str(refused.value).count("greater than or equal to 1") == 5
    assert str(refused.value).endswith("; and 4 more")


def test_no_credential() -> None:
    """A caller without a credential, all of whose tokens were withdrawn, is still known by name."""
    assert loaded("[callers.idle]").named("idle") == Caller("idle")


def test_credentials_hide_the_token() -> None:
    """Credentials that end in a log or a traceback show no token."""
    assert "s3cret" not in f"{bearer('s3cret')} {bearer('s3cret')!r}"


def test_everyone() -> None:
    """Without a callers file everyone is anonymous, whatever was sent."""
    assert Everyone().caller(bearer("anything")) == ANONYMOUS

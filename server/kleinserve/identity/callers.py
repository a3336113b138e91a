"""The callers file: who may call, by which tokens and certificates, within which limits. Knows no transport.

A content is checked as a whole and never changes; `WatchedCallers` asks the newest good one at each call.
"""

import hashlib
import hmac
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from kleinserve.core import Caller
from kleinserve.errors import BadConfig, PermissionDenied, Unauthenticated
from kleinserve.identity.authenticator import Credentials
from kleinserve.identity.reload import Read, Watched

NAME = re.compile(r"[a-z0-9._-]{1,64}")
REPLICAS = "[replicas]"  # stands where a caller's name would, and can be none
ERRORS_SHOWN_MAX = 5


def token_digest(token: str) -> str:
    """What is stored and compared of a token: its SHA-256, in lower-case hexadecimal digits."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def _name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError("a name is 1 to 64 of a-z 0-9 . _ -")
    return value


def _token_hash(value: str) -> str:
    if not re.fullmatch("[0-9a-fA-F]{64}", value):
        raise ValueError("not 64 hexadecimal digits (write the token's SHA-256, never the token)")
    if value.lower() == token_digest(""):
        raise ValueError("this is the hash of an empty token")
    return value.lower()


def _alternative_name(value: str) -> str:
    if not re.fullmatch("(URI|DNS):[!-~]+", value):
        raise ValueError("not URI:… or DNS:… in printable ASCII")
    return value


class _Table(BaseModel):
    """What proves an identity. Unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    token_sha256: list[Annotated[str, AfterValidator(_token_hash)]] = []
    certificates: list[Annotated[str, AfterValidator(_alternative_name)]] = []


class _CallerTable(_Table):
    admin: bool = False
    requests_max: Annotated[int, Field(ge=1)] | None = None
    megapixels_per_minute: Annotated[int, Field(ge=1)] | None = None


class _ReplicasTable(_Table):
    token_file: Annotated[str, Field(min_length=1)] | None = None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    # A file cut to nothing, as while it is being written, must not lock everyone out.
    callers: Annotated[dict[Annotated[str, AfterValidator(_name)], _CallerTable], Field(min_length=1)]
    replicas: _ReplicasTable = _ReplicasTable()


class Callers:
    """One content of the callers file. An Authenticator."""

    def __init__(
        self,
        callers: Mapping[str, Caller],
        tokens: Mapping[str, str],
        certificates: Mapping[str, str],
        replica_token: str | None = None,
    ):
        """`tokens`: names by digest; `certificates`: names by alternative name; REPLICAS is a name here too."""
        self._callers, self._certificates, self._replica_token = callers, certificates, replica_token
        self._tokens = [(digest.encode(), name) for digest, name in tokens.items()]

    def caller(self, credentials: Credentials) -> Caller:
        """Who calls. Raises: Unauthenticated, whose message tells nothing of the token and of who is known."""
        name = self._identify(credentials)
        if name == REPLICAS:
            raise Unauthenticated("a replica calls on behalf of a caller only", "unknown")
        return self._callers[name]

    def is_replica(self, credentials: Credentials) -> bool:
        """Whether another replica of this server calls, which may say on whose behalf."""
        try:
            return self._identify(credentials) == REPLICAS
        except Unauthenticated:
            return False

    def on_behalf(self, credentials: Credentials, name: str) -> Caller:
        """The caller of that name, for whom a replica calls. Raises: Unauthenticated, PermissionDenied."""
        if self._identify(credentials) != REPLICAS:
            raise PermissionDenied("only a replica calls on behalf of another caller")
        caller = self.named(name)
        if caller is None:
            raise Unauthenticated("the caller for whom a replica calls is not known here", "unknown")
        return caller

    def replica_token(self) -> str | None:
        """The token to send to other replicas, if they are known by tokens."""
        return self._replica_token

    def named(self, name: str) -> Caller | None:
        """The caller of that name, on whose behalf a replica calls; None where the file has none."""
        return self._callers.get(name)

    def _identify(self, credentials: Credentials) -> str:
        names = {self._certificates[name] for name in credentials.names if name in self._certificates}
        of_token = self._of_token(credentials.authorization)
        if of_token is not None:
            names.add(of_token)
        if len(names) > 1:
            raise Unauthenticated("the credentials of this call name different callers", "conflict")
        if names:
            return names.pop()
        if credentials.authorization:
            raise Unauthenticated("the token is not known, or is not sent as `Bearer TOKEN`", "unknown")
        if credentials.names:
            raise Unauthenticated("the client certificate is not known", "certificate")
        raise Unauthenticated("a token is needed: `authorization: Bearer TOKEN`", "none")

    def _of_token(self, authorization: tuple[str, ...]) -> str | None:
        """Whose token it is. Every known digest is compared, each in constant time, whichever fits."""
        if len(authorization) > 1:
            raise Unauthenticated("more than one `authorization` was sent", "conflict")
        scheme, _, token = authorization[0].strip().partition(" ") if authorization else ("", "", "")
        if scheme.lower() != "bearer":
            return None
        digest = token_digest(token.strip()).encode()
        found = [name for known, name in self._tokens if hmac.compare_digest(known, digest)]
        return found[0] if found else None


class WatchedCallers:
    """An Authenticator that asks the newest good content of the callers file."""

    def __init__(self, watched: Watched[Callers]):
        self._watched = watched

    def caller(self, credentials: Credentials) -> Caller:
        """Who calls. Raises: Unauthenticated."""
        return self._watched.value.caller(credentials)

    def on_behalf(self, credentials: Credentials, name: str) -> Caller:
        """The caller of that name, for whom a replica calls. Raises: Unauthenticated, PermissionDenied."""
        return self._watched.value.on_behalf(credentials, name)

    def replica_token(self) -> str | None:
        """The token to send to other replicas, if they are known by tokens."""
        return self._watched.value.replica_token()


def watch_callers(file: Path) -> Watched[Callers]:
    """The callers file, read now and again whenever it or its `token_file` changes. Raises: BadConfig."""
    return Watched("callers", lambda read: load(file, read))


def load(file: Path, read: Read) -> Callers:
    """The content of `file`, checked as a whole. `token_file` is relative to the file's directory.

    Raises: BadConfig, one line that names what is wrong and contains no token and no hash.
    """
    try:
        content = _File.model_validate(tomllib.loads(read(file).decode()))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        where = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise BadConfig(f"{file}: not TOML: {where}") from None
    except ValidationError as error:
        raise BadConfig(f"{file}: {_described(error)}") from None
    tables: dict[str, _Table] = {**content.callers, REPLICAS: content.replicas}
    tokens = _owners(file, "token_sha256", ((name, table.token_sha256) for name, table in tables.items()))
    certificates = _owners(file, "certificates", ((name, table.certificates) for name, table in tables.items()))
    callers = {
        name: Caller(name, table.admin, table.requests_max, table.megapixels_per_minute)
        for name, table in content.callers.items()
    }
    replica_token = _replica_token(file, content.replicas, read)
    return Callers(callers, tokens, certificates, replica_token)


def _owners(file: Path, what: str, lists: Iterable[tuple[str, Iterable[str]]]) -> dict[str, str]:
    """Names by credential. Raises: BadConfig where two names have the same one."""
    owners: dict[str, str] = {}
    for name, credentials in lists:
        for credential in credentials:
            if owners.setdefault(credential, name) != name:
                raise BadConfig(f"{file}: {owners[credential]} and {name} share an entry of {what}")
    return owners


def _replica_token(file: Path, replicas: _ReplicasTable, read: Read) -> str | None:
    if replicas.token_file is None:
        return None
    path = file.parent / replicas.token_file
    token = read(path).decode("ascii", "replace").strip()
    if token_digest(token) not in replicas.token_sha256:
        raise BadConfig(f"{path}: replicas.token_sha256 in {file} does not list this token")
    return token


def _described(error: ValidationError) -> str:
    """Which entries are wrong and how, without what they hold: it may be a secret in the wrong place."""
    problems = [
        f"{'.'.join(_shown(part) for part in problem['loc'])}: {problem['msg'].removeprefix('Value error, ')}"
        for problem in error.errors(include_input=False, include_context=False, include_url=False)
    ]
    more = len(problems) - ERRORS_SHOWN_MAX
    return "; ".join(problems[:ERRORS_SHOWN_MAX]) + (f"; and {more} more" if more > 0 else "")


def _shown(part: str | int) -> str:
    """A key on one line, cut at 64 characters."""
    return "".join(character if character.isprintable() else "?" for character in str(part)[:64])

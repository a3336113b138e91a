"""identity/tokens.py: `kleinserve token NAME`."""

import base64
from pathlib import Path

import pytest
from kleinserve.identity.authenticator import Credentials
from kleinserve.identity.callers import watch_callers
from kleinserve.identity.tokens import main


@pytest.mark.parametrize("name", ["web", "team.ops", "-", "0_a"])
def test_token(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What goes to standard error, pasted into a callers file, makes the token on standard output that caller's."""
    assert main(name) == 0
    out, err = capsys.readouterr()
    token = out.removesuffix("\n")
    assert len(base64.urlsafe_b64decode(token + "=")) == 32
    assert token not in err
    (tmp_path / "callers.toml").write_text(err)
    caller = watch_callers(tmp_path / "callers.toml").value.caller(Credentials((f"Bearer {token}",)))
    assert caller.name == name


def test_tokens_differ(capsys: pytest.CaptureFixture[str]) -> None:
    """No token comes twice."""
    for _ in range(100):
        main("web")
    assert len(set(capsys.readouterr().out.split())) == 100


@pytest.mark.parametrize("name", ["", "Web", "a b", "a" * 65, "web\n", "é"])
def test_bad_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that the callers file would refuse gets no token: exit code 2 and a line that says what a name is."""
    assert main(name) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "1 to 64 of a-z 0-9" in err

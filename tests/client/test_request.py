"""Options as they reach the wire."""

from pathlib import Path
from typing import Any

import pytest
from klein.v1 import image_pb2 as pb
from kleinclient import request

EVERYTHING: Any = {
    "size": "512x256",
    "seed": 0,
    "steps": 8,
    "guidance_scale": 2.0,
    "format": "webp",
    "quality": 80,
    "background": "transparent",
    "embed_prompt": True,
    "preview_every_n_steps": 2,
    "preview_max_edge": 64,
    "preview_format": "png",
    "priority": "batch",
    "idempotency_key": "key-1",
    "detach": True,
    "client_tag": "mine",
}


def test_every_option_reaches_its_field() -> None:
    """Each option sets the field of its name, and no field of the contract is out of reach."""
    message = request.generate("a red circle", EVERYTHING).message
    assert message == pb.GenerateRequest(
        prompt="a red circle",
        options=pb.ImageOptions(
            width=512,
            height=256,
            seed=0,
            steps=8,
            guidance_scale=2.0,
            output=pb.OutputOptions(format="IMAGE_FORMAT_WEBP", quality=80, background=2, embed_prompt=True),
            preview=pb.PreviewOptions(every_n_steps=2, max_edge=64, format="PREVIEW_FORMAT_PNG"),
            priority="PRIORITY_BATCH",
            idempotency_key="key-1",
            on_disconnect="ON_DISCONNECT_DETACH",
            client_tag="mine",
        ),
    )
    assert message.options.HasField("seed")
    assert {field.name for field in pb.ImageOptions.DESCRIPTOR.fields} == {
        field.name for field, _ in message.options.ListFields()
    }


def test_nothing_asked_is_nothing_sent() -> None:
    """Options that are left out or None leave the server its defaults."""
    nothing: Any = dict.fromkeys(EVERYTHING)
    assert (
        request.generate("x", {**nothing, "idempotency_key": ""}).message
        == request.generate("x", {"idempotency_key": ""}).message
        == pb.GenerateRequest(prompt="x", options=pb.ImageOptions())
    )


def test_no_previews() -> None:
    """previews=False turns them off, and True says nothing."""
    assert request.generate("x", {"previews": False}).message.options.preview.disabled
    assert not request.generate("x", {"previews": True}).message.options.HasField("preview")


def test_references(tmp_path: Path) -> None:
    """References are bytes or paths, in their order."""
    path = tmp_path / "b.png"
    path.write_bytes(b"second")
    ask = request.edit("x", [b"first", path, str(path)], {})
    assert [reference.image for reference in ask.message.references] == [b"first", b"second", b"second"]
    with pytest.raises(TypeError, match="give a list"):
        request.edit("x", b"first", {})  # type: ignore[arg-type]
    with pytest.raises(OSError, match=r"missing\.png"):
        request.edit("x", [tmp_path / "missing.png"], {})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": "256"}, "size: '256' is not WIDTHxHEIGHT"),
        ({"size": (1, 2, 3)}, "size"),
        ({"size": (-16, 16)}, "size"),
        ({"steps": -1}, "steps: .*-1"),
        ({"seed": 2**64}, "seed"),
        ({"steps": "four"}, "steps"),
        ({"format": "gif"}, "format: 'gif' is not one of png, webp, jpeg, raw_rgba"),
        ({"format": "unspecified"}, "format"),
        ({"priority": "urgent"}, "interactive, standard, batch"),
        ({"background": "white"}, "opaque, transparent"),
        ({"idempotency_key": "é"}, "printable ASCII"),
        ({"idempotency_key": "x" * 129}, "1 to 128"),
        ({"idempotency_key": " x"}, "without space at the ends"),
        ({"idempotency_key": "", "detach": True}, "detach: without an idempotency key"),
        ({"timeout": 0}, "timeout: 0 is not"),
        ({"timeout": float("nan")}, "timeout: nan is not"),
    ],
)
def test_values_that_do_not_fit(options: Any, words: str) -> None:
    """A value that the wire cannot carry is a ValueError naming the option, before anything is sent."""
    with pytest.raises(ValueError, match=words):
        request.generate("x", options)


def test_unknown_option() -> None:
    """A misspelt option is not ignored."""
    misspelt: Any = {"stpes": 4}
    with pytest.raises(TypeError, match="no such option: stpes"):
        request.generate("x", misspelt)


def test_random_keys() -> None:
    """Every request has a key of its own unless it was given one, or none."""
    keys = [request.generate("x", {}).message.options.idempotency_key for _ in range(2)]
    assert len(set(keys)) == 2
    assert all(20 <= len(key) <= 128 for key in keys)
    assert request.edit("x", [], {"idempotency_key": "mine"}).key == "mine"
    assert request.generate("x", {"idempotency_key": ""}).key == ""


@pytest.mark.parametrize("timeout", [None, float("inf"), 1e30])
def test_endless_timeouts(timeout: float | None) -> None:
    """A timeout that no clock would reach is none."""
    assert request.generate("x", {"timeout": timeout}).timeout is None

"""The contract's shape and its comments."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from tests.proto.check import BUF, ROOT, SOURCES
from tests.proto.descriptor import dump

GOLDEN = Path(__file__).parent / "klein.v1.txt"
ASKED = {"Reference", "ImageOptions", "OutputOptions", "PreviewOptions"}  # parts of requests; so is each XRequest
MESSAGE, FIELD = FileDescriptorProto.MESSAGE_TYPE_FIELD_NUMBER, 2  # where source info keeps messages and their fields


@pytest.fixture(scope="module")
def comments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Each field's comment, by `Message.field`, as buf reads it from the .proto files."""
    image = tmp_path_factory.mktemp("proto") / "image.binpb"
    subprocess.run([BUF, "build", "--as-file-descriptor-set", "--output", image], cwd=ROOT, check=True)
    files = FileDescriptorSet.FromString(image.read_bytes()).file
    return dict(entry for file in files if file.name in SOURCES for entry in _comments(file))


def _comments(file: FileDescriptorProto) -> Iterator[tuple[str, str]]:
    said = {tuple(place.path): place.leading_comments.strip() for place in file.source_code_info.location}
    for i, message in enumerate(file.message_type):
        for j, field in enumerate(message.field):
            yield f"{message.name}.{field.name}", said.get((MESSAGE, i, FIELD, j), "")


def test_the_wire_is_what_was_reviewed() -> None:
    """The contract has the golden file's names, numbers, types and labels; see descriptor.py to write it anew."""
    assert dump() == GOLDEN.read_text()


def test_every_field_has_a_comment(comments: dict[str, str]) -> None:
    """Every field says in words what it is."""
    assert len(comments) > 150
    assert [name for name, comment in comments.items() if len(comment) < 5] == []


def test_every_field_of_a_request_says_what_is_expected(comments: dict[str, str]) -> None:
    """Every field that a caller fills in is either required or has a default, and its comment says which."""
    asked = {name: comment for name, comment in comments.items() if _is_asked(name.split(".")[0])}
    assert len(asked) > 25
    assert [name for name, comment in asked.items() if "Required" not in comment and "efault" not in comment] == []


def _is_asked(message: str) -> bool:
    return message in ASKED or message.endswith("Request")

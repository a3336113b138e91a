"""The contract passes its checks, and the checks see what they are there for."""

import shutil
from pathlib import Path

import pytest

from tests.proto import check

# What someone might do to a copy of the contract: the file, the text, its replacement, and what the checks then say.
CHANGES = [
    ("klein/v1/image.proto", "  uint32 width = 1;", "    uint32 width = 1;", "proto format: make fix"),
    ("klein/v1/image.proto", "  // Default: an opaque PNG.\n", "", 'Field "output" should have a non-empty comment'),
    ("klein/v1/usage.proto", "GetUsageResponse", "GetUsageAnswer", "should be named"),
    ("klein/v1/image.proto", "uint32 steps = 4;", "uint64 steps = 4;", 'changed type from "uint32" to "uint64"'),
    ("klein/v1/image.proto", "string client_tag = 11;", "string client_tag = 12;", "was deleted"),
    ("klein/v1/image.proto", "// Text to image.", "// Words to image.", "+++ generated/klein/v1/image_pb2_grpc.py"),
    ("gen/klein/v1/usage_pb2.pyi", "class GetUsageRequest", "class Other", "proto stubs: make proto"),
]


def test_the_contract_is_right() -> None:
    """The committed contract is formatted, linted, compatible with the last release, and its stubs are its own."""
    assert check.problems() == []


@pytest.mark.parametrize(("file", "text", "replacement", "said"), CHANGES)
def test_a_change_is_seen(tmp_path: Path, file: str, text: str, replacement: str, said: str) -> None:
    """A format, comment, name, type, number or stub that is wrong is reported in words that name it."""
    copy = tmp_path / "proto"
    shutil.copytree(check.ROOT / "proto", copy)
    shutil.copy(check.ROOT / "buf.yaml", tmp_path)
    before = (copy / file).read_text()
    (copy / file).write_text(before.replace(text, replacement))
    assert (copy / file).read_text() != before
    assert said in "\n".join(check.problems(tmp_path))


def test_make_proto_generates_what_is_checked() -> None:
    """The Makefile's command for the stubs has the arguments of the check."""
    assert " ".join(check.protoc("gen")) in (check.ROOT / "Makefile").read_text()

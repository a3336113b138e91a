"""The contract as text, one line for each rpc, field and enum value, so that a change on the wire shows in review.

python -m tests.proto.descriptor > tests/proto/klein.v1.txt
"""

from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from klein.v1 import image_pb2, usage_pb2

TYPES = {number: name[5:].lower() for name, number in vars(FieldDescriptor).items() if name.startswith("TYPE_")}


def dump() -> str:
    """The whole contract: services, then messages, then enums of each file, in the order of the file."""
    return "\n".join(line for pb2 in (image_pb2, usage_pb2) for line in _lines(pb2.DESCRIPTOR)) + "\n"


def _lines(file: FileDescriptor) -> Iterator[str]:
    for service in file.services_by_name.values():
        for rpc in service.methods:
            answer = f"{'stream ' if rpc.server_streaming else ''}{rpc.output_type.full_name}"
            yield f"{service.full_name}.{rpc.name} {rpc.input_type.full_name} -> {answer}"
    for message in file.message_types_by_name.values():
        yield from _fields(message)
    for enum in file.enum_types_by_name.values():
        yield from (f"{enum.full_name}.{value.name} {value.number}" for value in enum.values)


def _fields(message: Descriptor) -> Iterator[str]:
    """Each field's name, number, type and label; a message without fields is a line too."""
    if not message.fields:
        yield f"{message.full_name} (empty)"
    for field in message.fields:
        of = field.message_type or field.enum_type
        yield f"{field.full_name} {field.number} {of.full_name if of else TYPES[field.type]} {_label(field)}".rstrip()


def _label(field: FieldDescriptor) -> str:
    """`repeated`, `oneof NAME`, `optional` where 0 is told from absent, or nothing."""
    if field.is_repeated:
        return "repeated"
    if field.containing_oneof and not field.containing_oneof.name.startswith("_"):
        return f"oneof {field.containing_oneof.name}"
    return "optional" if field.containing_oneof else ""


if __name__ == "__main__":
    print(dump(), end="")

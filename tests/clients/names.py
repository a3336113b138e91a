"""Which names of the contract a client's source uses, found by where they stand in the language, without a compiler.

A name counts without its case and underscores (`image_chunk`, `ImageChunk`, `setImageChunk`), since each language
writes it in its own way.
"""

import re

from klein.v1 import image_pb2, usage_pb2

IMPORTS = r'import \{([^}]*)\} from "[^"]*(?:klein/v1/image|\./klein(?:\.js)?)"'
CALLS = r"(?:images|client|stub|stub_|images_|Stub\(channel\))(?:\.|->)(\w+)\("
OPTIONS = r"(?:\b(?:draw|generate)\(|options = |options: |preview: |output = |references: \[)(\{.*?\})"
# Where each language's sources have names of the contract, and what else stands in such a place.
PLACES: dict[str, tuple[str, ...]] = {
    "go": (r"pb\.(?:New)?(?:ImageEvent_)?(\w+)", r"\.Get(\w+)\(\)", r"(?<![\w.])([A-Z]\w+): ", r"images\.(\w+)\("),
    "node": (
        IMPORTS,
        r'(?:case|\$case ===) "(\w+)"',
        r"(?:header|accepted|completed|size|value)\.(\w+)",
        CALLS,
        OPTIONS,
    ),
    "browser": (IMPORTS, r'case === "(\w+)"', r"(?:header|accepted|completed|size|value)\.(\w+)", CALLS, OPTIONS),
    "java": (
        r"import klein\.v1\.(\w+);",
        r"\.(?:set|has)([A-Z]\w*)\(",
        r"(?:event|accepted|header)\.get(\w+)\(",
        CALLS,
    ),
    "cpp": (
        r"\b(?:set|mutable|add|has)_(\w+)\(",
        r"(?:event|accepted|completed|header)\.(?!has_)(\w+)\(\)",
        r"v1::(\w+)",
        CALLS,
    ),
    "ruby": (r"\b(\w+): ", r"(?:event|accepted|completed|header|preview|image_chunk)\.(\w+)", r"when :(\w+)", CALLS),
}
OTHERS: dict[str, set[str]] = {
    "go": {"Status", "Reason", "FieldViolations", "Field"},
    "node": {"DeepPartial", "length", "cancel", "close", "status"},
    "browser": {"Code", "klein", "Options", "problem", "read", "length", "set"},
    "java": {"EventCase", "next", "withDeadlineAfter"},
    "cpp": {"deadline", "health", "Health", "HealthCheckRequest", "HealthCheckResponse", "event_case"},
    "ruby": {"deadline", "return_op", "public_send"},
}


def plain(name: str) -> str:
    """The name without case and underscores."""
    return name.replace("_", "").lower()


def contract() -> set[str]:
    """Every name of the contract, and of each enum value its short form too."""
    found = set()
    for file in (image_pb2.DESCRIPTOR, usage_pb2.DESCRIPTOR):
        for service in file.services_by_name.values():
            found |= {service.name, f"{service.name}Client", f"{service.name}Grpc", *service.methods_by_name}
        for message in file.message_types_by_name.values():
            found |= {message.name, *message.fields_by_name, *message.oneofs_by_name}
        for enum in file.enum_types_by_name.values():
            prefix = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", enum.name).upper() + "_"
            for value in enum.values_by_name:
                found |= {enum.name, value, f"{enum.name}_{value}", value.removeprefix(prefix)}
    return {plain(name) for name in found}


def used(language: str, source: str) -> set[str]:
    """The names in the language's places, less those that are none of the contract's."""
    code = re.sub(r"(?<!:)//.*|^\s*#.*", "", source, flags=re.MULTILINE)
    places = [text for pattern in PLACES[language] for text in re.findall(pattern, code, re.DOTALL)]
    names = {plain(word) for place in places for word in _words(place)}
    return names - {plain(other) for other in OTHERS[language]}


def _words(place: str) -> list[str]:
    """A place is a name, a list of imports, or an object's keys."""
    if place.startswith("{"):
        return re.findall(r"[{,]\s*(\w+)\s*(?=[:,}])", place)
    return re.findall(r"\b(?!type\b)\w+", place)

"""The wire's enums as lower-case words: IMAGE_FORMAT_RAW_RGBA is "raw_rgba". Knows no message."""

from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

ZERO = "UNSPECIFIED"


def word(enum: EnumTypeWrapper, number: int) -> str:
    """The word for `number`; "" for the unspecified one and for numbers that this client does not know."""
    name = enum.DESCRIPTOR.values_by_number.get(number)
    return "" if name is None or name.number == 0 else name.name.removeprefix(_prefix(enum)).lower()


def number(enum: EnumTypeWrapper, word: str) -> int:
    """The number for `word`. Raises: ValueError, listing the words that there are."""
    words = {name.removeprefix(_prefix(enum)).lower(): number for name, number in enum.items() if number}
    if word not in words:
        raise ValueError(f"{word!r} is not one of {', '.join(words)}")
    return words[word]


def _prefix(enum: EnumTypeWrapper) -> str:
    return str(enum.DESCRIPTOR.values_by_number[0].name).removesuffix(ZERO)

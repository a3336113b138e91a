"""What a size counts; in megapixels: tests/usage/test_price.py."""

import pytest
from kleinserve.core import Size


@pytest.mark.parametrize(
    ("size", "words", "pixels", "tokens"),
    [
        (Size(64, 64), "64x64", 4096, 16),
        (Size(1024, 1024), "1024x1024", 1_048_576, 4096),
        (Size(8192, 512), "8192x512", 4_194_304, 16_384),
        (Size(96, 64), "96x64", 6144, 24),
    ],
)
def test_a_size_in_words_pixels_and_tokens(size: Size, words: str, pixels: int, tokens: int) -> None:
    """Width comes first; a token is 16 × 16 pixels."""
    assert (str(size), size.pixels, size.tokens) == (words, pixels, tokens)

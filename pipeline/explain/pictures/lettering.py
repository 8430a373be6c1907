"""Text on pictures: one font, lines that fit, and the colors of paper and ink."""

import functools

from PIL import ImageFont

PAPER, INK, QUIET, ALARM = "#fbfaf7", "#1c1b19", "#6d6a63", "#b3261e"


@functools.cache
def font(px: int) -> ImageFont.FreeTypeFont:
    """Return the font that Pillow brings along."""
    found = ImageFont.load_default(px)
    assert isinstance(found, ImageFont.FreeTypeFont), "Pillow's wheels are built with FreeType"
    return found


def wrap(text: str, px: int, width: float) -> list[str]:
    """Break a text at spaces into lines of at most `width` px; a longer word is fitted."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if font(px).getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return [fit(line, px, width) for line in lines]


def fit(text: str, px: int, width: float) -> str:
    """Elide the middle of a text that is wider than `width` px."""
    keep, shown = len(text), text
    while keep > 2 and font(px).getlength(shown) > width:
        keep -= 1
        shown = shorten(text, keep)
    return shown


def shorten(text: str, num: int) -> str:
    """Elide the middle of a text that is longer than `num` characters.

    >>> shorten("000000123", 9), shorten("0004152c21a520283b7a", 9)
    ('000000123', '000...b7a')
    """
    if len(text) <= num:
        return text
    kept = max(0, num - 3)
    return f"{text[: -(-kept // 2)]}...{text[len(text) - kept // 2 :]}"

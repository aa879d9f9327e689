"""Words from outside, as names of files and classes, in a line of text, a picture or Markdown."""

import re
import unicodedata

__all__ = ["LITERAL_TEXT", "abbreviate", "escape_markdown", "printable"]

# Settings of matplotlib under which a picture has words as they are, whatever `$` or TeX is in them.
LITERAL_TEXT = {"text.parse_math": False, "text.usetex": False}

# Controls, line and paragraph separators, and the surrogates in which Python keeps bytes that are not UTF-8.
_UNPRINTABLE = ("Cc", "Zl", "Zp", "Cs")

# What makes text run the other way, or ends that: a name could look like another by it.
_TURNING = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

# What begins or ends something in Markdown, its tables, formulas and HTML. An underscore within a word does not.
_MARKUP = re.compile(r"[\\`*\[\]<>&|~$]|(?<![^\W_])_|_(?![^\W_])")


def printable(text: object) -> str:
    r"""The text in a line that any UTF-8 output takes: new lines, controls, what is not UTF-8 as \n, \x1b, \udcff."""
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in _UNPRINTABLE or char in _TURNING
        else char
        for char in str(text)
    )


def abbreviate(text: object, length: int) -> str:
    """The printable text with its middle left out where it is longer."""
    text = printable(text)
    return text if len(text) <= length else f"{text[: length // 2 - 1]}…{text[-(length - length // 2) :]}"


def escape_markdown(text: object) -> str:
    """The printable text so that Markdown shows it as it is, in a cell of a table or within a line."""
    return _MARKUP.sub(r"\\\g<0>", printable(text))

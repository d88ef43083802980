"""Shows what a file holds inside a sentence.

Rule: what is shown is short and printable, so that a sentence stays one line and nothing in it can be disguised.
"""

LONGEST = 40
_MOST_DIGITS = 20

_TYPES: dict[type, str] = {
    bool: "a boolean",
    int: "an integer",
    float: "a float",
    str: "a string",
    list: "an array",
    dict: "a table",
}


def printable(text: str, longest: int = LONGEST) -> str:
    """Cut what would fill a line and escape what would break it."""
    if len(text) > longest:
        text = text[:longest] + "…"
    # Not the codec "unicode_escape", which is imported when it is first used: where a worker can import nothing.
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def quoted(text: str) -> str:
    """Show a string of the file."""
    return f'"{printable(text)}"'


def type_of(value: object) -> str:
    """Name a value's type in TOML's words."""
    return _TYPES.get(type(value), "a date or time")


def shown(value: object) -> str:
    """Show a value where it is a short one, else its type."""
    if isinstance(value, str):
        return quoted(value)
    if type(value) is int and abs(value) < 10**_MOST_DIGITS:  # str() of a longer one can fail
        return str(value)
    return type_of(value)

"""What all tables of the configuration are made of: the strict model, and types of keys with their sentences.

Rule: what is wrong with a value is one sentence in the words of the file; no type is lax.
"""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict
from pydantic_core import PydanticCustomError

RESTART: dict[str, Any] = {"restart": True}  # marks the fields which only a restart can change


def rule(sentence: str) -> PydanticCustomError:
    """Make an error whose sentence says it all; to that of a ValueError the value is added."""
    return PydanticCustomError("rule", "{sentence}", {"sentence": sentence})


def at_most(count: int) -> BeforeValidator:
    """Bound an array before each of its items is checked, which is what takes time."""

    def check(value: object) -> object:
        if isinstance(value, list) and len(value) > count:
            raise rule(f"must hold at most {count} items, got {len(value)}")
        return value

    return BeforeValidator(check)


def _plain(text: str) -> str:
    if any(character < " " or character == "\x7f" for character in text):
        raise ValueError("must not hold control characters")
    return text


def _absolute(path: str) -> str:
    if path and not path.startswith("/"):
        raise ValueError("must be an absolute path")
    return path


Text = Annotated[str, AfterValidator(_plain)]
OptionalPath = Annotated[Text, AfterValidator(_absolute)]


class Table(BaseModel):
    """What all tables have in common."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)

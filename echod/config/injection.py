"""`[listener.faults]`: faults on purpose, so that a client can be shown the bad days too.

Rule: off unless asked for, and never silent: each listener that has some is warned of at the start and after a reload,
and every record of it and of its connections says `echod.fault`.
"""

from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator

from echod.config.fields import Table, rule
from echod.config.quantities import MIB, Duration, Size, size_text

LONGEST_DELAY = 60.0
MOST = 1024 * MIB

STREAMS = ("delay", "jitter", "rate", "close_after", "reset_after", "stall_after")
DATAGRAMS = ("drop", "duplicate")
"""Which faults are for bytes in a row, and which for datagrams."""

CHANCE = ("jitter", *DATAGRAMS)
ENDS = ("close_after", "reset_after", "stall_after")


def _short(seconds: float) -> float:
    if seconds > LONGEST_DELAY:
        raise ValueError('must be a duration of at most "1m"')
    return seconds


def _size(count: int) -> int:
    if count > MOST:
        raise ValueError(f'must be a size of at most {size_text(MOST)}, or "0B"')
    return count


Delay = Annotated[Duration, AfterValidator(_short)]
Count = Annotated[Size, AfterValidator(_size)]


class Faults(Table):
    """`[listener.faults]`."""

    delay: Delay = Field(default=0.0, description="How long each byte is held before it goes back, at most 1m.")
    jitter: Delay = Field(default=0.0, description="By how much that varies, up or down; bytes stay in order.")
    rate: Count = Field(
        default=0, description='Bytes a second that go back to each client, such as "64KiB"; "0B" for any.'
    )
    close_after: Count = Field(default=0, description='End a connection once so many bytes are back; "0B" never does.')
    reset_after: Count = Field(default=0, description='The same by a reset; "0B" never does.')
    stall_after: Count = Field(default=0, description='Send nothing more after so many bytes; "0B" never does.')
    drop: float = Field(default=0.0, ge=0, le=1, description="The part of all datagrams that is not answered, 0 to 1.")
    duplicate: float = Field(default=0.0, ge=0, le=1, description="The part that is answered twice, 0 to 1.")
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="The same seed makes the same choices again.")

    @field_validator("jitter")
    @classmethod
    def _is_less(cls, jitter: float, info: Any) -> float:
        if jitter > info.data.get("delay", jitter):
            raise rule("must not be longer than delay")
        return jitter

    @field_validator(*ENDS)
    @classmethod
    def _is_alone(cls, count: int, info: Any) -> int:
        other = next((key for key in ENDS if info.data.get(key)), None)
        if count and other:
            raise rule(f"cannot be beside {other}: whichever comes first is the end")
        return count

    @field_validator("seed")
    @classmethod
    def _is_used(cls, seed: int, info: Any) -> int:
        if seed and not any(info.data.get(key, True) for key in CHANCE):
            raise rule("does nothing without jitter, drop or duplicate")
        return seed

    @property
    def active(self) -> dict[str, Any]:
        """What is asked for, as it is written in the file; empty for no faults."""
        return self.model_dump(mode="json", exclude_defaults=True)

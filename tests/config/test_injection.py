"""Which faults there are; what is refused of them stands in `tests/bad_configs.py`."""

from __future__ import annotations

from echod.config.injection import DATAGRAMS, STREAMS, Faults


def test_without_a_word_nothing_is_harmed() -> None:
    """Faults are off by default."""
    assert {} == Faults().active


def test_what_is_asked_for_is_said_as_it_is_written() -> None:
    """The warning holds what the file does, units and all."""
    faults = Faults.model_validate({"delay": "100ms", "jitter": "100ms", "rate": "64KiB", "drop": 1, "seed": 3})

    assert {"delay": "100ms", "jitter": "100ms", "rate": "64KiB", "drop": 1.0, "seed": 3} == faults.active


def test_every_fault_is_for_streams_or_for_datagrams() -> None:
    """A key that belongs to neither would be taken where it does nothing."""
    assert {*Faults.model_fields} - {"seed"} == {*STREAMS, *DATAGRAMS}

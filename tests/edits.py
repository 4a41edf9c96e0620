"""Edits of a message, for the tests that none is accepted."""

from __future__ import annotations

from hypothesis import strategies as st


def edit_of(data: st.DataObject, message: bytes, most: int) -> bytes:
    """``message`` with up to ``most`` bytes, anywhere, replaced by up to as many; it may be as it was."""
    start = data.draw(st.integers(0, len(message)))
    end = data.draw(st.integers(start, min(len(message), start + most)))
    return message[:start] + data.draw(st.binary(max_size=most)) + message[end:]

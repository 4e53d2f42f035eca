"""What a contract check says when it fails, and the check that bad input is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn


def fail(check: str, subject: Any, detail: str) -> NoReturn:
    """Raises AssertionError: `subject` breaks the contract `check`."""
    raise AssertionError(f"{type(subject).__name__} breaks the contract {check!r}: {detail}")


def refuses(subject: Any, word: str, call: Callable[[], Any], *, given: str = "") -> None:
    """`call` must raise a ValueError or TypeError whose message holds `word`; `given` says what was bad.

    Raises:
        AssertionError: it does not.
    """
    given = given or f"a bad {word}"
    try:
        call()
    except (ValueError, TypeError) as error:
        if word not in str(error):
            fail("clear errors", subject, f"{given}: the message must name {word!r}, got: {error}")
        return
    fail("clear errors", subject, f"{given} was accepted")

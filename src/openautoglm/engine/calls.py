"""`Call`: work that one thread hands to another, and the future that its result comes back in."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

_Result = TypeVar("_Result")


class Call(Generic[_Result]):
    """Call it once, in the thread that may do the work; what it returns or raises goes to whoever has `future`."""

    __slots__ = ("_function", "future")

    def __init__(self, function: Callable[[], _Result]) -> None:
        self._function = function
        self.future: Future[_Result] = Future()

    def __call__(self) -> None:
        """Do the work, unless nobody waits for it any more."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self._function())
        except Exception as error:  # noqa: BLE001 - handed to the caller, whole
            self.future.set_exception(error)

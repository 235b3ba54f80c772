"""Signals as one exception, raised where it can be cleaned up after."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ...system import stop_signals


class Interrupted(KeyboardInterrupt):
    """A signal asked us to stop. Not an `Exception`, so that nothing swallows it on the way."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum


class SignalDeferral:
    """Puts off `Interrupted` while half a step would be worse than a short wait."""

    depth = 0
    pending: int | None = None

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1
        if not self.depth and self.pending is not None:
            signum, self.pending = self.pending, None
            signal.raise_signal(signum)


signals_deferred = SignalDeferral()
# What has to be undone if a signal hits between a `with` and its body.
pending_cleanup: set[Callable[[], None]] = set()


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn the first signal to stop, such as SIGINT, into `Interrupted`, and ignore the next while that cleans up.

    >>> try:
    ...     with interruptible():
    ...         signal.raise_signal(signal.SIGTERM)
    ... except Interrupted as stop:
    ...     print(stop, stop.exit_code)
    interrupted by SIGTERM 143
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python allows handlers in the main thread only
        return
    raised, previous = False, {}

    def handler(signum: int, frame: FrameType | None) -> None:
        nonlocal raised
        if signals_deferred.depth:
            signals_deferred.pending = signum
        elif not raised:
            raised = True
            raise Interrupted(signum)

    try:
        for signum in stop_signals():
            if (before := signal.getsignal(signum)) != signal.SIG_IGN:  # `nohup` must keep its meaning
                previous[signum] = before or signal.SIG_DFL
                signal.signal(signum, handler)
        yield
    except Interrupted:
        for discard in list(pending_cleanup):
            discard()
        raise
    finally:
        raised = True
        for signum, before in previous.items():
            signal.signal(signum, before)

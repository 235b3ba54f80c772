"""Tasks done here, one after the other, or by an executor: the same results, and the same errors."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from threading import Lock
from typing import Any, Protocol, TypeVar
from uuid import uuid4

from ..checkpoint.write.interrupt import interruptible
from ..errors import ConverterError, InputError, UsageError, explained, printable

Key = TypeVar("Key")
# Held by a task that needs its process for itself, such as one that changes settings of torch: workers may be threads.
ALONE = Lock()
TOO_MUCH = "a crash, or too little memory"
POLL = 0.05  # seconds between two looks: not every executor's futures can be waited for together
_ERRORS = {error.exit_code: error for error in (ConverterError, UsageError, InputError)}


class AnyExecutor(Protocol):
    """What gives tasks away: every executor of `concurrent.futures`, and a Dask client."""

    def submit(self, task: Callable[..., Any], /, *args: Any) -> Any:
        """A future."""


class WorkerDied(ConverterError):
    """The worker that had a task died before it was done."""


def do_all(
    task: Callable[..., Any],
    work: Iterable[tuple[Key, tuple[Any, ...]]],
    done: Callable[[Key, Any], object],
    executor: AnyExecutor | None = None,
) -> None:
    """Do `task(*arguments)` for every (key, arguments), and call `done(key, result)` here as each finishes.

    Args:
        task: for an executor a function of a module, or a `partial` of one. Where its worker died, it is done again at
            the end, while nothing else runs.
        work: asked for one by one; without an executor, the next once the one before it is done.
        done: given an `Exception` where the task ended in one, or nobody could do it; an executor's is a
            `ConverterError` with the words and the exit code of the task's own.

    Example:
        >>> do_all(int, [("a", ("17",)), ("b", ("x",))], lambda key, result: print(key, repr(result)))
        a 17
        b ValueError("invalid literal for int() with base 10: 'x'")
    """
    if executor is None:
        for key, arguments in work:
            try:
                result = task(*arguments)
            except Exception as error:
                result = error
            done(key, result)
        return
    waiting: dict[Any, tuple[Key, bytes]] = {}
    suspects: list[tuple[Key, bytes]] = []

    def submit(data: bytes) -> Any:
        try:
            return executor.submit(_carry_out, data, uuid4().hex)  # of the same arguments, Dask remembers the result
        except Exception as error:
            refused = Future[Any]()
            refused.set_exception(error)
            return refused

    def finish() -> None:
        for future in [future for future in waiting if future.done()]:
            (key, data), result = waiting.pop(future), _result(future)
            if isinstance(result, WorkerDied):
                suspects.append((key, data))
            else:
                done(key, result)

    try:
        for key, arguments in work:
            try:
                data = pickle.dumps((task, arguments))
            except Exception as error:
                done(key, UsageError(f"it cannot be given to another process: {printable(error, 300)}"))
                continue
            waiting[submit(data)] = key, data
            finish()
        while waiting:
            time.sleep(POLL)
            finish()
        for key, data in suspects:  # the fault may be that of a task beside it, or before it
            done(key, _result(submit(data)))
    finally:
        for future in waiting:
            future.cancel()


def _carry_out(data: bytes, call: str) -> Any:
    """In a worker: what came of the task, as `done` is given it. (An error of another kind than ours may be one that
    cannot be pickled, and some executors break of that.)"""
    with interruptible():
        try:
            task, arguments = pickle.loads(data)
            return task(*arguments)
        except Exception as error:
            words, code = explained(error)
            return _ERRORS.get(code, ConverterError)(words)


def _result(future: Any) -> Any:
    """What came of a task, as `done` is given it."""
    try:
        error = future.exception()  # raised, an interrupt of the worker would be one of this process
        if error is None:
            return future.result()
    except Exception as failure:
        error = failure
    name, words = type(error).__name__, printable(" ".join(str(error).split()), 300)
    if name == "KilledWorker":  # of Dask
        return WorkerDied(f"its worker died {error.allowed_failures + 1} times: {TOO_MUCH}")
    return error if isinstance(error, ConverterError) else ConverterError(f"no worker could do it ({name}: {words})")

"""The executors of the command line: processes of this machine, or the workers of a Dask scheduler."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import current_thread, main_thread
from typing import TYPE_CHECKING, Any

from ..errors import ConverterError, UsageError, plural, printable, require
from .tasks import TOO_MUCH, AnyExecutor, WorkerDied

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

CONNECT = 10  # seconds in which a scheduler has to answer


class Workers(ThreadPoolExecutor):
    """An executor whose workers are so many processes of this machine; each of its threads waits for one of them.

    One that dies (killed, out of memory, a crash) is replaced, and costs its own task only, which ends in a
    `ConverterError`; `deaths` counts them. Each has its part of the processors as threads of torch, unless
    OMP_NUM_THREADS is set. An exception that leaves the `with`, such as Ctrl-C, stops them; each removes first what it
    had half-written.

    Example:
        >>> with Workers(2) as executor:
        ...     [executor.submit(pow, base, 2).result() for base in (3, 4)]
        [9, 16]
    """

    def __init__(self, count: int) -> None:
        if type(count) is not int or count < 1:
            raise UsageError(f"`workers` {count}: must be a whole number of at least 1")
        super().__init__(count)
        self.deaths, self._stopped, self._count = 0, False, count
        self._workers, self._free = list[_Worker](), list[_Worker]()

    def submit(self, task: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if len(self._workers) < self._count:
            self._workers.append(_Worker(max(1, (os.cpu_count() or 1) // self._count)))
            self._free.append(self._workers[-1])
        return super().submit(self._do, pickle.dumps((task, args, kwargs)))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As of every executor, but that with `cancel_futures` the tasks that run are stopped too."""
        self._stopped |= cancel_futures
        super().shutdown(wait=False, cancel_futures=cancel_futures)
        for worker in self._workers if cancel_futures else ():
            worker.process.terminate()
        if wait:
            super().shutdown()
            for worker in self._workers:
                worker.end()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.shutdown(cancel_futures=kind is not None)

    def _do(self, task: bytes) -> Any:
        worker = self._free.pop()  # there are never more threads than workers
        try:
            worker.connection.send_bytes(task)
            result, error = worker.connection.recv()
        except (EOFError, OSError):
            how = worker.end()
            if not self._stopped:
                self.deaths += 1
                worker.start()
            raise WorkerDied(f"its worker died ({how}): {TOO_MUCH}") from None
        finally:
            self._free.append(worker)
        if error:
            raise error
        return result


class _Worker:
    """A process, and what connects to it."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self.start()

    def start(self) -> None:
        from multiprocessing import get_context  # only here: no conversion waits for it

        # Not forked: what torch, or a thread of the parent, holds just then would be held for ever.
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._threads), daemon=True)
        # Ctrl-C, which a terminal tells all processes, is for the parent: from its first moment on, this one is deaf.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN) if current_thread() is main_thread() else None
        try:
            process.start()
        finally:
            if before is not None:
                signal.signal(signal.SIGINT, before)
        theirs.close()  # so that the end of the process is the end of the connection
        self.process = process

    def end(self) -> str:
        """Wait for the end of the process, which comes once it is idle, and say how it ended."""
        self.connection.close()
        self.process.join()
        code = self.process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"


def _serve(connection: Connection, threads: int) -> None:
    """The life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        if torch := sys.modules.get("torch"):  # by the parent's script, which every new process reads
            torch.set_num_threads(threads)
    with suppress(EOFError, OSError, KeyboardInterrupt):  # the parent has gone, or wants this process to stop
        while True:
            data = connection.recv_bytes()
            try:
                task, args, kwargs = pickle.loads(data)
                connection.send((task(*args, **kwargs), None))
            except Exception as error:
                connection.send((None, error))


@contextmanager
def chosen_executor(
    workers: int | None, cluster: str | None, say: Callable[[str], object] = lambda words: None
) -> Iterator[AnyExecutor | None]:
    """The executor of so many `workers` on this machine, or of those of a `cluster`; None where neither is given.

    Args:
        cluster: the address of a Dask scheduler, such as 'tcp://10.0.0.1:8786'.
        say: told at the end of workers of this machine that died.

    Raises: `UsageError` for both, for no number or address, and where `distributed` is not installed;
    `ConverterError` where no scheduler answers.
    """
    if cluster is not None:
        if workers is not None:
            raise UsageError("`workers` cannot be combined with `cluster`, which has its own")
        with _client(cluster) as executor:
            try:
                yield executor
            except KeyboardInterrupt as stop:
                vars(stop)["left"] = "what the workers of the cluster have begun they end, whole"
                raise
    elif workers is not None:
        with Workers(workers) as executor:
            yield executor
            if executor.deaths:
                say(f"{plural(executor.deaths, 'worker')} died, each of which cost its task another try")
    else:
        yield None


def _client(address: str) -> Any:
    require("`cluster`", "distributed", extra="cluster")
    import distributed

    dask: Any = distributed  # its types leave gaps
    what = f"`cluster` {printable(address)}"
    logging.getLogger("distributed.client").disabled = True  # what goes wrong stands in the outcomes
    try:
        return dask.Client(address or "tcp://", timeout=CONNECT)  # without any, it would start a scheduler
    except OSError as error:
        raise ConverterError(f"{what}: no Dask scheduler answers there ({printable(error)})") from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"{what}: not the address of a Dask scheduler, such as tcp://HOST:8786") from error

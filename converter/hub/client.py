"""The hub's client, kept quiet, its errors in one line of ours."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ..errors import ConverterError, InputError, printable
from .answers import Distrusted, checked
from .redaction import redacted

LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
# Which of the two, the hub does not tell somebody who may not know.
_NO_REPOSITORY = f"the hub has no such model repository, or it is private: {LOGIN}"


@contextmanager
def talking(
    name: str,
    *,
    quiet: bool = False,
    before: str = "",
    refusal: type[ConverterError] = InputError,
    failure: type[ConverterError] = InputError,
) -> Iterator[None]:
    """Around calls of the hub's client: its progress bars on a terminal only, no chatter, its errors in one line, and
    no answer believed that leads out of the cache.

    Args:
        name: what the errors are about, as the user spelled it.
        quiet: no progress bars on a terminal either.
        before: what is to be said before "the hub cannot be reached".
        refusal: the kind of error where the hub says no; `failure` where it cannot be reached, or breaks off.

    Raises: these; `InputError` for an answer that is no hub's; `ConverterError` itself where the disk, or the cache on
    it, fails. Neither they nor what they were raised from repeat a token or a password.
    """
    with ExitStack() as restored:
        _hush(restored, bars=not quiet and sys.stderr is not None and sys.stderr.isatty())
        restored.enter_context(checked())
        try:
            yield
        except Distrusted as error:
            raise InputError(f"{printable(name)}: {error}") from None
        except failures() as error:
            raise _explained(name, error, before, refusal, failure) from _told(error)
        except Exception as error:
            # An upload wraps what went wrong, and so does the faster transfer.
            cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
            if isinstance(error, ConverterError):
                raise
            if isinstance(cause, Distrusted):
                raise InputError(f"{printable(name)}: {cause}") from None
            if isinstance(cause, failures()) or type(cause) is RuntimeError:
                raise _explained(name, cause, before, refusal, failure) from _told(error)
            if not _of_the_client(error):
                raise
            # An answer that is no JSON, or JSON of another shape.
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            raise failure(f"{printable(name)}: the hub's client gave up: {kind}{said(error)}") from _told(error)


class ClientError(Exception):
    """What the client raised, in its words without secrets: what our errors are raised from."""


def _told(error: BaseException) -> ClientError:
    return ClientError(f"{type(error).__name__}: {redacted(error)}").with_traceback(error.__traceback__)


def said(words: object, limit: int = 200) -> str:
    """What a hub or its client says, in one line, safe to show: every text of theirs goes through this."""
    return printable(redacted(" ".join(str(words).split())), limit)


def _of_the_client(error: BaseException) -> bool:
    """Whether it was raised below the client: what we do wrongly ourselves is not its fault."""
    trace, ours = error.__traceback__, True
    while trace:
        ours = ours and trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] != "huggingface_hub"
        trace = trace.tb_next
    return not ours


def failures() -> tuple[type[BaseException], ...]:
    """What calls of the client raise where the hub says no, cannot be reached, or the disk fails.

    Its own errors derive from those of the HTTP library, which is another one from version 1 on.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, *(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)))


def _hush(restored: ExitStack, *, bars: bool) -> None:
    from huggingface_hub import utils
    from huggingface_hub.utils import logging as verbosity

    restored.enter_context(warnings.catch_warnings())
    # Those attributed to the client; what we call wrongly would be attributed to us.
    warnings.filterwarnings("ignore", module=r"huggingface_hub(\.|$)")
    if verbosity.get_verbosity() == logging.WARNING:  # its default; whoever chose another wants to see it
        verbosity.set_verbosity(logging.CRITICAL)
        restored.callback(verbosity.set_verbosity, logging.WARNING)
    if not bars and not utils.are_progress_bars_disabled():
        utils.disable_progress_bars()
        restored.callback(utils.enable_progress_bars)


def unreachable(error: BaseException) -> bool:
    """Whether the hub did not answer at all, or only that it cannot now: what is in the cache may still serve."""
    status = _status(error)
    return status == 429 or status >= 500 if status else not _of_the_disk(error)


def _status(error: BaseException) -> int:
    """The HTTP status that the hub answered with, 0 where it did not answer."""
    return getattr(getattr(error, "response", None), "status_code", 0)


def _of_the_disk(error: BaseException) -> bool:
    network = ConnectionError | TimeoutError
    return isinstance(error, OSError) and error.errno is not None and not isinstance(error, network)


def _explained(
    name: str, error: BaseException, before: str, refusal: type[ConverterError], failure: type[ConverterError]
) -> ConverterError:
    """What went wrong, in our words."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # it says that there is nothing in the cache either
    kind, words = failure, before + _unreached(error)
    if isinstance(error, errors.GatedRepoError):
        kind, words = refusal, f"gated: ask for access on its page on the hub, and {LOGIN}"
    elif isinstance(error, errors.RepositoryNotFoundError):
        kind, words = refusal, _NO_REPOSITORY
    elif isinstance(error, errors.RevisionNotFoundError):
        kind, words = refusal, "the repository has no such branch, tag or commit"
    elif isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        kind, words = refusal, "the repository holds no such file"
    elif status := _status(error):
        kind, words = (failure if unreachable(error) else refusal), _answered(error, status)
    elif _of_the_disk(error):
        assert isinstance(error, OSError)
        where = f"{said(error.filename)}: " if error.filename else ""
        kind, words = ConverterError, f"cannot be kept: {where}{error.strerror} (HF_HOME says where downloads are kept)"
    return kind(f"{printable(name)}: {words}")


def _answered(error: BaseException, status: int) -> str:
    from huggingface_hub import get_token

    message = getattr(error, "server_message", None)
    words = f" ({said(message)})" if message else ""
    if status == 401 and not get_token():
        return _NO_REPOSITORY
    if status == 401:
        return f"the hub does not accept the token{words}: {LOGIN}"
    if status == 403:
        return f"the hub does not allow it{words}"
    if status == 412:
        return "the repository was changed by somebody else meanwhile: try again"
    return f"the hub answers with status {status}{words}"


def _unreached(error: BaseException) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids to ask the hub"
    words = said(error) or type(error).__name__
    return f"the hub at {said(constants.ENDPOINT)} cannot be reached, or broke off: {words}"

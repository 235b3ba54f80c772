"""`huggingface_hub`, kept quiet, its errors in one line of ours."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from traceback import walk_tb

from ..errors import ConverterError, InputError, printable
from .answers import UntrustedAnswer, responses_checked
from .redaction import redacted

LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
# The hub does not tell an unauthorised user which of the two it is.
_NO_REPOSITORY = f"the hub has no such model repository, or it is private: {LOGIN}"


class ClientError(Exception):
    """What the client raised, in its words without secrets: what our errors are raised from."""


@contextmanager
def hub_calls(
    name: str,
    *,
    quiet: bool = False,
    before: str = "",
    refusal: type[ConverterError] = InputError,
    failure: type[ConverterError] = InputError,
) -> Iterator[None]:
    """Around calls of the hub's client: its progress bars on a terminal only, no warnings, its errors in one line, and
    no answer trusted that leads out of the cache.

    Args:
        name: what the errors are about, as the user wrote it.
        quiet: no progress bars on a terminal either.
        before: words in front of "the hub cannot be reached".
        refusal: the kind of error where the hub says no; `failure` where it cannot be reached, or the connection ends.

    Raises: these; `InputError` for an answer that is no hub's; `ConverterError` itself where the disk, or the cache on
    it, fails. Neither they nor what they were raised from repeat a token or a password.
    """
    with ExitStack() as restored:
        _silence(restored, bars=not quiet and sys.stderr is not None and sys.stderr.isatty())
        restored.enter_context(responses_checked())
        try:
            yield
        except Exception as error:
            # An upload wraps what went wrong, and so does the faster transfer.
            cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
            if isinstance(cause, UntrustedAnswer):
                raise InputError(f"{printable(name)}: {cause}") from None
            if isinstance(error, ConverterError):
                raise
            if isinstance(cause, client_errors()) or type(cause) is RuntimeError:
                kind, problem = _explained(cause, before, refusal, failure)
            elif _raised_in_client(error):  # by an answer that is no JSON, or JSON of another shape
                label = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
                kind, problem = failure, f"the hub's client failed: {label}{one_line(error)}"
            else:
                raise
            redacted_error = ClientError(f"{type(error).__name__}: {redacted(error)}")
            raise kind(f"{printable(name)}: {problem}") from redacted_error.with_traceback(error.__traceback__)


def one_line(text: object, limit: int = 200) -> str:
    """What a hub or its client says, in one line, safe to show: every text of theirs goes through this."""
    return printable(redacted(" ".join(str(text).split())), limit)


def client_errors() -> tuple[type[BaseException], ...]:
    """What calls of the client raise where the hub says no, cannot be reached, or the disk fails.

    Its own errors derive from those of the HTTP library, which is another one from version 1 on.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, *(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)))


def unreachable(error: BaseException) -> bool:
    """Whether the hub did not answer at all, or only that it cannot now: what is in the cache may still serve."""
    status = _status(error)
    return status == 429 or status >= 500 if status else not _is_disk_error(error)


def _silence(restored: ExitStack, *, bars: bool) -> None:
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


def _raised_in_client(error: BaseException) -> bool:
    """Whether the client is among the callers: what we do wrongly ourselves is not its fault."""
    frames = (frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__))
    return any(name.partition(".")[0] == "huggingface_hub" for name in frames)


def _status(error: BaseException) -> int:
    """The HTTP status that the hub answered with, 0 where it did not answer."""
    return getattr(getattr(error, "response", None), "status_code", 0)


def _is_disk_error(error: BaseException) -> bool:
    network = ConnectionError | TimeoutError
    return isinstance(error, OSError) and error.errno is not None and not isinstance(error, network)


def _explained(
    error: BaseException, before: str, refusal: type[ConverterError], failure: type[ConverterError]
) -> tuple[type[ConverterError], str]:
    """The kind of error, and what went wrong in our words."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.LocalEntryNotFoundError):
        error = error.__cause__ or error  # it says that there is nothing in the cache either
    if isinstance(error, errors.GatedRepoError):
        return refusal, f"gated: ask for access on its page on the hub, and {LOGIN}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return refusal, _NO_REPOSITORY
    if isinstance(error, errors.RevisionNotFoundError):
        return refusal, "the repository has no such branch, tag or commit"
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return refusal, "the repository holds no such file"
    if status := _status(error):
        return failure if unreachable(error) else refusal, _answered(error, status)
    if isinstance(error, OSError) and _is_disk_error(error):
        file = f"{one_line(error.filename)}: " if error.filename else ""
        return ConverterError, f"cannot be stored: {file}{error.strerror} (HF_HOME sets where downloads are stored)"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return failure, f"{before}HF_HUB_OFFLINE is set, so the hub cannot be asked"
    reason = one_line(error) or type(error).__name__
    endpoint = one_line(constants.ENDPOINT)
    return failure, f"{before}the hub at {endpoint} cannot be reached, or the connection broke: {reason}"


def _answered(error: BaseException, status: int) -> str:
    from huggingface_hub import get_token

    message = getattr(error, "server_message", None)
    quoted = f" ({one_line(message)})" if message else ""
    meanings = {
        401: f"the hub does not accept the token{quoted}: {LOGIN}" if get_token() else _NO_REPOSITORY,
        403: f"the hub does not allow it{quoted}",
        412: "the repository was changed by somebody else meanwhile: try again",
    }
    return meanings.get(status, f"the hub answers with status {status}{quoted}")

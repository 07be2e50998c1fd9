"""User errors: mistakes that the caller can fix."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class UserError(Exception):
    """An error that the caller can correct; the message has what was found, what was expected and what to do.

    The command line prints the message alone and exits with status 2.
    """


def closest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Ends a sentence: with "; did you mean X?" for the known name nearest to `name`, or with "."."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {matches[0]}?" if matches else "."


@contextlib.contextmanager
def as_user_error(hint: str = "", of: str = "") -> Iterator[None]:
    """Re-raises ValueError as UserError with a hint: inside, a model meets the clips that a user chose for it.

    Args:
        hint: ends the message.
        of: setting or model that the message is about; begins the message.
    """
    try:
        yield
    except (ValueError, UserError) as error:
        message = str(error) if isinstance(error, UserError) else f"{error}{hint}"
        raise UserError(f"{of}: {message}" if of else message) from error


class RunError(Exception):
    """A run that had to stop, through no known mistake in its settings; exit status 1."""


class DivergedError(RunError):
    """A run whose loss, gradient, parameters or outputs are not finite."""


class Preempted(Exception):
    """A run that was asked to stop, and stopped after it had saved; exit status 75."""

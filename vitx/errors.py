"""User errors: mistakes that the caller can fix."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class ReportedError(Exception):
    """An error that is reported as one message, without a traceback.

    Names of files and classes may have line breaks in them, and none may forge a line: only `details` begin new ones.

    Attributes:
        message: what was found, what was expected and what to do.
        details: lines below the message.
    """

    def __init__(self, message: str = "", details: Iterable[str] = ()):
        self.message, self.details = str(message), tuple(details)
        super().__init__(self.message, self.details)

    def __str__(self) -> str:
        return "\n  ".join(text.replace("\n", r"\n") for text in (self.message, *self.details))

    def within(self, where: str) -> "ReportedError":
        """Returns the error with a place, such as the file that it was found in, before its message."""
        return type(self)(f"{where}: {self.message}", self.details)


class UserError(ReportedError):
    """An error that the caller can correct; the message has what was found, what was expected and what to do.

    The command line prints the message alone and exits with status 2.
    """


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Ends a sentence: with "; did you mean X?" for the known name nearest to `name`, or with "."."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {matches[0]}?" if matches else "."


@contextlib.contextmanager
def as_user_error(hint: str = "", of: str = "") -> Iterator[None]:
    """Re-raises ValueError as UserError with a hint, for code in which only a user's settings can be at fault.

    Args:
        hint: ends the message.
        of: setting or model that the message is about; begins the message.
    """
    try:
        yield
    except UserError as error:
        if not of:
            raise
        raise error.within(of) from error
    except ValueError as error:
        reported = UserError(f"{error}{hint}")
        raise (reported.within(of) if of else reported) from error


class RunError(ReportedError):
    """A run that had to stop, through no known mistake in its settings; exit status 1."""


class DivergedError(RunError):
    """A run whose loss, gradient, parameters or outputs are not finite."""


class Preempted(Exception):
    """A run that was asked to stop, and stopped after it had saved; exit status 75."""

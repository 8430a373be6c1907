"""Exceptions into one line and an exit code: 2 input, 1 damage and disk, 130 Ctrl-C."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.config import ConfigError
from pipeline.remote.fetch import FetchError
from pipeline.shards.damage import DamageError
from pipeline.shards.publish import PublishError


class IncompleteError(RuntimeError):
    """Some shards could not be written; what was written stays."""


@contextmanager
def clear_errors() -> Iterator[None]:
    """End the process with one line on standard error where a person can act on the mistake."""
    try:
        yield
    except ConfigError as error:
        _end(str(error), 2)
    except (DamageError, FetchError, IncompleteError, PublishError) as error:
        _end(str(error), 1)
    except OSError as error:  # A full disk, a read-only folder, a file that vanished.
        _end(f"{error.filename or 'input or output'}: {error.strerror or error}.", 1)
    except KeyboardInterrupt:
        _end(
            "stopped. What was finished is whole; the same command goes on from there "
            "(with --resume, if it has that option).",
            130,
        )


def _end(message: str, code: int) -> None:
    sys.stderr.write(f"tessera: {message}\n")
    sys.exit(code)

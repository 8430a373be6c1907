"""A Ray job from the client's side: what is sent, the log that is followed, how it ended."""

import asyncio
import http.client
import json
import logging
import os
import shlex
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pipeline.config import ConfigError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

DASHBOARD = "http://127.0.0.1:8265"
CONFIG_FILE = "job.json"
"""The run's config in the job's working directory: metadata and variables of a job are public."""

_CHECKOUT = Path(__file__).parent.parent
_PACKAGES = ("cluster", "pipeline", "training")
_MAX_BYTES = 100 * 2**20  # What the dashboard takes in one request.
_NUM_NAMED = 3
# The Python of the same path as here where the cluster has one, else the one on its PATH.
_ENTRYPOINT = "$(command -v {python} || command -v python) -m cluster.submit"
_REQUEST_SECONDS = 8.0
_POLL_SECONDS = 1.0
_QUIET_SECONDS = 10.0
_PATIENCE_SECONDS = 20.0
"""With the longest request, less than half a minute."""


def address_of(given: str | None) -> str:
    """Return the dashboard to use: the one given, else what Ray's variables name, else this one."""
    if given is not None:
        return given
    named = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS", "")
    return named if named.startswith("http") else DASHBOARD


def connect(address: str) -> "JobSubmissionClient":
    """Connect to the dashboard of a cluster, in seconds or not at all.

    Raises:
        ConfigError: No dashboard answers there, or it does not take our token.
    """
    _require_dashboard(address)
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        def _do_request(self, *arguments: Any, **options: Any) -> Any:
            return super()._do_request(*arguments, **{"timeout": _REQUEST_SECONDS, **options})

    logging.getLogger("ray").setLevel(logging.ERROR)  # It tells of every package.
    try:
        with _only(address):
            return Client(address)
    except AuthenticationError:
        raise ConfigError(_token_advice(address)) from None
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(_no_head(address, _first_line(error))) from None


def submit_job(client: "JobSubmissionClient", address: str, config: str, out: str) -> str:
    """Send the code and a config, as JSON; return the job's id.

    Patient with a head that has just started and takes no jobs yet.

    Raises:
        ConfigError: The code is too large to be sent, or the head refuses the job.
    """
    files = _files_sent(_CHECKOUT)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "tessera.zip"
        _write_zip(package, files, config)
        while True:
            try:
                return client.submit_job(
                    entrypoint=_ENTRYPOINT.format(python=shlex.quote(sys.executable)),
                    runtime_env={"working_dir": str(package)},
                    metadata={"out": out},
                )
            except (OSError, RuntimeError) as error:
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise ConfigError(
                        f"address (={address}) did not take the job: {_first_line(error)}"
                    ) from None
            time.sleep(_POLL_SECONDS)


def follow(client: "JobSubmissionClient", address: str, job: str, console: Console) -> int:
    """Print the log of a job until it ends; a stream that breaks is opened again where it broke.

    Returns:
        The exit code of the job's driver, or 1 if it has none.

    Raises:
        ConfigError: The head no longer answers, or no longer knows the job.
    """
    info = asyncio.run(_Log(client, address, job, console).follow())
    console.print(f"job {job}: {info.status.value}")
    return 0 if info.status.value == "SUCCEEDED" else info.driver_exit_code or 1


class _Log:
    """The log of a job, as far as it has been printed."""

    def __init__(
        self, client: "JobSubmissionClient", address: str, job: str, console: Console
    ) -> None:
        self._client, self._address, self._job, self._console = client, address, job, console
        self._num_shown = 0  # Characters.

    async def follow(self) -> "JobDetails":
        from aiohttp import ClientError

        while True:
            # How the stream ends says nothing about the job: only its status does.
            with suppress(ClientError, OSError, RuntimeError):
                await self._print_stream()
            info = self._info()
            if info.status.is_terminal():
                self._print(self._client.get_job_logs(self._job)[self._num_shown :])
                return info
            await asyncio.sleep(_POLL_SECONDS)

    async def _print_stream(self) -> None:
        """Print until the stream ends, breaks, or outlives its job; each begins at the start."""
        stream = self._client.tail_job_logs(self._job)
        skip = self._num_shown
        waiting: asyncio.Future[str] | None = None
        try:
            while True:
                waiting = waiting or asyncio.ensure_future(anext(stream))
                done, _ = await asyncio.wait({waiting}, timeout=_QUIET_SECONDS)
                if not done:
                    if self._info().status.is_terminal():
                        return
                    continue
                text, waiting = waiting.result(), None
                self._print(text[skip:])
                skip = max(0, skip - len(text))
        except StopAsyncIteration:
            return
        finally:
            if waiting is not None:
                waiting.cancel()

    def _print(self, text: str) -> None:
        self._num_shown += len(text)
        self._console.out(text, end="", highlight=False)

    def _info(self) -> "JobDetails":
        """Ask for the job's state, patiently."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return self._client.get_job_info(self._job)
            except (OSError, RuntimeError) as error:
                if "404" in str(error):
                    raise ConfigError(
                        f"job (={self._job}) is no longer known at {self._address}: the head was "
                        "restarted without its state; submit again, it goes on where it stopped."
                    ) from None
                if time.monotonic() > deadline:
                    raise ConfigError(
                        f"address (={self._address}) no longer answers; job {self._job} may go on. "
                        f"When the head is back: ray job logs --follow {self._job} --address "
                        f"{self._address}, or submit again."
                    ) from None
            time.sleep(_POLL_SECONDS)


def _require_dashboard(address: str) -> None:
    """Refuse what is no dashboard, before Ray tries for minutes."""
    if not address.startswith(("http://", "https://")):
        raise ConfigError(
            f"address (={address}) must be that of the dashboard, as {DASHBOARD}; Ray's own port "
            "(6379) and ray:// take no jobs."
        )
    try:
        with urllib.request.urlopen(
            f"{address.rstrip('/')}/api/version", timeout=_REQUEST_SECONDS
        ) as answer:
            is_dashboard = b"ray_version" in answer.read()
    except urllib.error.HTTPError as error:
        is_dashboard = error.code in (401, 403)  # It wants a token.
        error.close()
    except (http.client.HTTPException, ConnectionResetError):
        is_dashboard = False
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        is_dashboard = not isinstance(reason, ConnectionResetError | http.client.HTTPException)
        if is_dashboard:
            raise ConfigError(_no_head(address, _first_line(reason))) from None
    if not is_dashboard:
        raise ConfigError(
            f"address (={address}) is no dashboard of Ray; give the dashboard's, by default port "
            "8265, not that of Ray itself (6379)."
        )


def _no_head(address: str, reason: str) -> str:
    return (
        f"address (={address}) has no Ray head that takes jobs: {reason} Start one with "
        "`ray start --head`, whose dashboard address is the one to give."
    )


def _token_advice(address: str) -> str:
    """Say what is wrong with our token, but never what it is."""
    own = Path.home() / ".ray" / "auth_token"
    there = (os.environ.get("RAY_AUTH_TOKEN"), os.environ.get("RAY_AUTH_TOKEN_PATH"), own.exists())
    if os.environ.get("RAY_AUTH_MODE") == "token" and any(there):
        problem = "does not take this machine's token"
    else:
        problem = "wants a token, and none is sent"
    return (
        f"address (={address}) {problem}; export RAY_AUTH_MODE=token and copy the head's "
        f"{own.name} to {own}, or name the file in RAY_AUTH_TOKEN_PATH."
    )


@contextmanager
def _only(address: str) -> Iterator[None]:
    """Hide the variables that Ray prefers to the address it is given."""
    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _files_sent(root: Path) -> list[Path]:
    """List the files of our packages, relative to `root`; refuse more than a head takes.

    Nothing else travels: not the data and runs that lie in a checkout, not the other packages
    beside an installed one.
    """
    files, sizes = [], Counter[str]()
    for package in _PACKAGES:
        for path in sorted((root / package).rglob("*")):
            inner = path.relative_to(root)
            is_hidden = any(part.startswith((".", "__pycache__")) for part in inner.parts)
            if path.is_file() and not is_hidden:
                files.append(inner)
                sizes["/".join(inner.parts[:-1][:2])] += path.stat().st_size
    if sizes.total() > _MAX_BYTES:
        largest = ", ".join(f"{name} {n / 1e6:.0f} MB" for name, n in sizes.most_common(_NUM_NAMED))
        raise ConfigError(
            f"the code in {root} (={sizes.total() / 1e6:.0f} MB) exceeds the "
            f"{_MAX_BYTES / 1e6:.0f} MB that a head takes; largest: {largest}. Move data out of "
            f"{', '.join(_PACKAGES)}."
        )
    return files


def _write_zip(path: Path, files: Sequence[Path], config: str) -> None:
    """Write a zip whose bytes depend on its contents alone: Ray keeps packages by their hash."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.writestr(zipfile.ZipInfo(file.as_posix()), (_CHECKOUT / file).read_bytes())
        archive.writestr(zipfile.ZipInfo(CONFIG_FILE), config)


def _first_line(error: object) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200].rstrip(".") + "."


def read_config() -> dict[str, Any]:
    """Read, in the job, the config that was sent."""
    raw: dict[str, Any] = json.loads(Path(CONFIG_FILE).read_text(encoding="utf-8"))
    return raw

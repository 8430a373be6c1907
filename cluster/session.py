"""Connect to Ray, or start a local one."""

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import ray
from ray._private import ray_constants

from pipeline.atomic import partial_path
from pipeline.config import ConfigError

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}
_MIN_CPUS = 2  # The demo trains two workers; on one core they take turns.
_OBJECT_STORE_BYTES = 128 * 2**20  # Images never go through it, only paths and counts.


def ensure_ray(address: str | None = None) -> bool:
    """Use an existing Ray (initialised, or named by RAY_ADDRESS), else start a local one.

    Args:
        address: A cluster to use instead of RAY_ADDRESS.

    Returns:
        Whether this call connected or started Ray, so that the caller shuts it down.

    Raises:
        ConfigError: No cluster answers at `address`.
    """
    if ray.is_initialized():
        return False
    for key, value in _SETTINGS.items():
        os.environ.setdefault(key, value)
    name, wanted = "address", address
    if wanted is None:
        name, wanted = "RAY_ADDRESS", os.environ.get("RAY_ADDRESS") or None
    if wanted is not None:
        _connect(name, wanted)
        return True
    _require_token()
    with _loopback_only():
        ray.init(
            "local",  # Never a cluster that happens to run on this machine.
            num_cpus=max(_MIN_CPUS, os.cpu_count() or 1),
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    return True


@contextmanager
def _loopback_only() -> Iterator[None]:
    """Let a Ray that starts here listen on 127.0.0.1 alone, as it does by itself on a Mac.

    Ray replaces a loopback address that it is given by the machine's own, and then listens on all.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _connect(name: str, address: str) -> None:
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except ray.exceptions.AuthenticationError:
        raise ConfigError(
            f"{name} (={address}) does not take this machine's token, or none is sent; export "
            "RAY_AUTH_MODE=token and copy the head's token to ~/.ray/auth_token."
        ) from None
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{name} (={address}) is no Ray cluster that answers: "
            f"{' '.join(str(error).split())[:200]} Start one with: ray start --head"
        ) from None


def _require_token() -> None:
    """See to it that the local Ray takes only who can read this user's token.

    Ray takes up the token by itself where RAY_AUTH_MODE is unset; its own file would be
    readable by all. RAY_AUTH_MODE=disabled is obeyed.
    """
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = Path.home() / ".ray" / "auth_token"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _write_token(path)
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except OSError:  # No home to write to: the token lives as long as this process.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _write_token(path: Path) -> None:
    """Write a new token, unless another process is faster; nobody sees half of it."""
    partial = partial_path(path)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    try:
        with suppress(FileExistsError):
            path.hardlink_to(partial)
    finally:
        partial.unlink()

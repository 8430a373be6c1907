"""Connect to Ray, or start a local one."""

import logging
import os

import ray

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
    if address is not None:
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"address (={address}) is no Ray cluster that answers: "
                f"{' '.join(str(error).split())[:200]} Start one with: ray start --head"
            ) from None
        return True
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        return True
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # One machine, loopback only.
    ray.init(
        "local",  # Never a cluster that happens to run on this machine.
        num_cpus=max(_MIN_CPUS, os.cpu_count() or 1),
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    return True

import os

import pytest


@pytest.fixture(scope="session")
def local_ray():
    """A Ray of two CPUs, shared by all tests of the session."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray  # Costs a second; only tests that need it should pay.

    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
    )
    yield
    ray.shutdown()

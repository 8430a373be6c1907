import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Tensors here are tiny: waking threads costs more than the work."""
    torch.set_num_threads(1)

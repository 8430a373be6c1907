"""Whether counts are what chance gives."""

import numpy as np


def assert_uniform(counts, freedom):
    """Chi-square less than five standard deviations from its mean; all seeds are fixed."""
    expected = counts.sum() / counts.size
    chi = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi - freedom) < 5 * np.sqrt(2 * freedom)

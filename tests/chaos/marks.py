"""The mark of tests that only the long form runs."""

import os

import pytest

__all__ = ["LONG_FORM"]

LONG_FORM = [
    pytest.mark.chaos,
    pytest.mark.cluster,
    pytest.mark.skipif("CHAOS_FAULTS" not in os.environ, reason="make chaos runs it"),
]

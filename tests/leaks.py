"""Warnings that are not ours: of connections that MLflow leaves to the garbage collector."""

import pytest

__all__ = ["MLFLOW_LEAKS"]

MLFLOW_LEAKS = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

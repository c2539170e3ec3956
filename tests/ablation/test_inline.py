import pytest

from ablation.executors.inline import run_inline
from ablation.testing import Executor, ExecutorContract


class TestInline(ExecutorContract):
    @pytest.fixture
    def executor(self) -> Executor:
        return run_inline

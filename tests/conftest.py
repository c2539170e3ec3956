import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def _nobodys_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What whoever runs the tests has set for themselves is no business of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        for name in [name for name in os.environ if name.startswith("ABLATION_")]:
            patch.delenv(name)
        yield


@pytest.hookimpl(tryfirst=True)  # before xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start a Ray run one after another; others may run beside them."""
    for item in items:
        if item.get_closest_marker("cluster") or item.get_closest_marker("chaos"):
            item.add_marker(pytest.mark.xdist_group("cluster"))

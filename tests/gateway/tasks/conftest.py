from __future__ import annotations

import pytest

from tests.gateway.tasks.models import Runner, write_repository


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Every task on the tiny models."""
    return Runner(write_repository(tmp_path_factory.mktemp("models") / "repository"))

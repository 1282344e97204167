from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway.dialects.served import Served
from tests.gateway.tasks.models import write_repository


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The task dialects behind a real HTTP server."""
    catalog = write_repository(tmp_path_factory.mktemp("served") / "repository")
    with Served(catalog).running() as running:
        yield running

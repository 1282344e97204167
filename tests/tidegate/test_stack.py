"""What stops ``tidegate up`` before anything is started."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from embedded.guard import SHM
from embedded.launcher import STUB_SHARED_BYTES
from gateway.settings import Settings
from tidegate.stack import Stack, StackError, _address, _reachable

ROOT = Path(__file__).parents[2]
PORTS = ("port", "grpc_port", "admin_port", "dashboard_port", "triton_http_port", "triton_grpc_port",
         "triton_metrics_port")  # fmt: skip
OPTIONS = {"port": "--port", "grpc_port": "--grpc-port", "dashboard_port": "--dashboard-port"}


class Free(NamedTuple):
    """A file system with ``free`` bytes left."""

    free: int


def option(port: str) -> str:
    """What names ``port`` on the command line, or else in the environment."""
    return OPTIONS.get(port, f"TIDEGATE_{port.upper()}")


def make(data_dir: Path, *, free: dict[Path, int] | None = None, **settings: Any) -> Stack:
    ports = dict.fromkeys(PORTS, 0)
    repository = ROOT / "model_repository"
    return Stack(
        Settings(**{"data_dir": data_dir, "model_repository": repository, **ports, **settings}),
        disk_usage=lambda folder: Free((free or {}).get(folder, 2**40)),
    )


def refusal(stack: Stack) -> str:
    """The one line that ``check`` raises."""
    try:
        with pytest.raises(StackError) as refused:
            stack.check()
    finally:
        stack.stop()
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


@pytest.mark.parametrize("port", PORTS)
def test_a_port_in_use_is_named_with_its_option(tmp_path: Path, taken: int, port: str) -> None:
    line = refusal(make(tmp_path, **{port: taken}))
    assert line.startswith(f"port {taken} on 127.0.0.1 is in use")
    assert line.endswith(option(port))


@pytest.mark.parametrize("port", PORTS[1:])
def test_a_port_that_is_named_twice_is_said(tmp_path: Path, port: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        number = other.getsockname()[1]
    line = refusal(make(tmp_path, **{"port": number, port: number}))
    assert line.startswith(f"port {number} is named twice, by ")
    assert {"--port", option(port)} <= set(line.replace(":", " ").split())


def test_an_address_of_another_machine_is_no_port_in_use(tmp_path: Path) -> None:
    line = refusal(make(tmp_path, host="192.0.2.99"))
    assert line.startswith("192.0.2.99 cannot be listened on: Cannot assign requested address")
    assert "in use" not in line


@pytest.mark.parametrize("model", ["identity", "identity,qa"])
def test_a_disk_without_space_is_said(tmp_path: Path, model: str) -> None:
    repository = ROOT / "model_repository"
    stubs = STUB_SHARED_BYTES * len(model.split(","))
    for folder, needed in ((tmp_path, 256 * 2**20), (repository, 256 * 2**20), (SHM, stubs)):
        line = refusal(make(tmp_path, free={folder: needed - 1}, models=model))
        assert line.startswith("no disk space: ")
        assert f" in {folder}, {needed // 2**20} MiB are needed" in line
    fits = make(tmp_path, free={tmp_path: 256 * 2**20, repository: 256 * 2**20, SHM: stubs}, models=model)
    fits.check()
    fits.stop()


def test_a_data_folder_has_one_stack(tmp_path: Path) -> None:
    first = make(tmp_path)
    first.check()
    assert refusal(make(tmp_path)).startswith(f"another tidegate up runs on {tmp_path}: ")
    first.stop()
    second = make(tmp_path)
    second.check()
    second.stop()


def test_a_data_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in refusal(make(tmp_path / "file" / "data"))


def test_a_missing_repository_is_said(tmp_path: Path) -> None:
    assert "no model repository at /nowhere" in refusal(make(tmp_path, model_repository=Path("/nowhere")))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["my data", "it's", "a$b"])
def test_a_folder_that_triton_cannot_use_is_said(tmp_path: Path, name: str) -> None:
    assert f"{tmp_path / name}: Triton takes no folder with " in refusal(make(tmp_path / name))
    (tmp_path / name).mkdir()
    repository = {"model_repository": tmp_path / name}
    assert f"{tmp_path / name}: Triton takes no folder with " in refusal(make(tmp_path / "data", **repository))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("host", "address"),
    [("::1", "[::1]:8501"), ("::", "127.0.0.1:8501"), ("0.0.0.0", "127.0.0.1:8501"), ("10.0.0.5", "10.0.0.5:8501")],
)
def test_an_address_is_written_as_a_client_needs_it(host: str, address: str) -> None:
    assert _reachable(_address(host, 8501)) == address

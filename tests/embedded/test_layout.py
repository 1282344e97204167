"""Finding the wheel and laying out the backend directory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from embedded.errors import UnsupportedPythonError, WheelNotFoundError
from embedded.layout import STUB, TritonWheel, find_wheel, lay_out, server_environment


@pytest.mark.parametrize("version", [(3, 10), (3, 11), (3, 12)])
def test_the_wheel_serves_every_supported_python(wheel: TritonWheel, version: tuple[int, int]) -> None:
    stub = find_wheel(python_version=version).stub
    assert stub.is_file()
    assert f"/{version[0]}.{version[1]}/" in str(stub)


def test_pytritons_python_is_not_imported(wheel: TritonWheel) -> None:
    assert "pytriton" not in sys.modules


def test_a_python_without_a_stub_is_named(wheel: TritonWheel) -> None:
    with pytest.raises(UnsupportedPythonError, match=r"no stub for Python 3\.7, only for .*3\.10, 3\.11, 3\.12"):
        find_wheel(python_version=(3, 7))


def test_an_incomplete_wheel_is_named(tmp_path: Path) -> None:
    (tmp_path / "pytriton" / "tritonserver").mkdir(parents=True)
    with pytest.raises(WheelNotFoundError, match="incomplete: .*bin/tritonserver is missing"):
        find_wheel([tmp_path])


def test_a_layout_replaces_an_older_one(wheel: TritonWheel, tmp_path: Path) -> None:
    first = lay_out(wheel, tmp_path)
    stale = first.backends / "python" / "stale"
    stale.touch()
    layout = lay_out(wheel, tmp_path)
    assert not stale.exists()
    assert sorted(folder.name for folder in layout.backends.iterdir()) == ["onnxruntime", "python", "pytorch"]
    assert (layout.backends / "python" / STUB).stat().st_mode & 0o100
    assert (layout.backends / "onnxruntime" / "model.py").is_file()
    assert [entry.name for entry in layout.working_folder.iterdir()] == ["embedded"]


def test_the_environment_puts_the_wheel_and_this_python_first(wheel: TritonWheel) -> None:
    environment = server_environment(
        wheel, {"PATH": "/usr/bin", "LD_LIBRARY_PATH": "/other", "PYTHONHOME": "/wrong", "KEPT": "1"}
    )
    assert environment["PATH"].split(":") == [str(Path(sys.executable).parent), "/usr/bin"]
    assert environment["LD_LIBRARY_PATH"].split(":")[-2:] == [str(wheel.libraries), "/other"]
    assert "PYTHONHOME" not in environment
    assert environment["KEPT"] == "1"


def test_a_python_without_its_shared_library_is_said(wheel: TritonWheel) -> None:
    with pytest.raises(
        UnsupportedPythonError, match=r"Python 3\.7 .* libpython3\.7\.so\.1\.0.*apt-get install libpython3\.7"
    ):
        server_environment(wheel, {}, python_version=(3, 7))

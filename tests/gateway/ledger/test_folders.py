import os
import subprocess
import sys
import time

import pytest

from gateway.ledger.folders import create_folder, orphans

HOLD = """
import sys, time
from pathlib import Path
from gateway.ledger.folders import create_folder, orphans
folder = create_folder(Path(sys.argv[1]), "other")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other_process(tmp_path):
    """A process that holds the folder ``other``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_folder_held_by_a_living_process_is_no_orphan(tmp_path, other_process):
    assert list(orphans(tmp_path)) == []
    with pytest.raises(FileExistsError):
        create_folder(tmp_path, "other")


def test_a_dead_process_leaves_an_orphan_which_one_adopts_and_only_one(tmp_path, other_process):
    other_process.kill()
    other_process.wait()
    (folder,) = orphans(tmp_path)
    assert folder.gateway_id == "other"
    assert list(orphans(tmp_path)) == []
    folder.close()
    (again,) = orphans(tmp_path)
    again.remove()
    assert list(tmp_path.iterdir()) == []


def test_ones_own_folder_is_no_orphan_while_it_is_held(tmp_path):
    folder = create_folder(tmp_path, "mine")
    assert list(orphans(tmp_path)) == []
    folder.close()
    assert [found.gateway_id for found in orphans(tmp_path)] == ["mine"]


def test_what_was_left_half_made_is_swept_once_it_is_old(tmp_path):
    (tmp_path / ".new-young").mkdir()
    old = tmp_path / ".new-old"
    old.mkdir()
    os.utime(old, (time.time() - 3600,) * 2)
    assert list(orphans(tmp_path)) == []
    assert [path.name for path in tmp_path.iterdir()] == [".new-young"]


def test_what_was_left_half_deleted_is_swept_and_never_replayed(tmp_path):
    gone = tmp_path / ".gone-dead"
    gone.mkdir()
    (gone / "000000000001.journal").touch()
    assert list(orphans(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_a_journal_until_the_moment_it_is_removed(tmp_path, monkeypatch):
    folder = create_folder(tmp_path, "mine")
    (folder.path / "000000000001.journal").touch()
    monkeypatch.setattr("shutil.rmtree", lambda path: (path / "lock").unlink())  # dies after the first file
    folder.remove()
    monkeypatch.undo()
    assert list(orphans(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


def test_other_folders_are_left_alone(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / ".damaged").mkdir()
    assert list(orphans(tmp_path)) == []
    assert list(orphans(tmp_path / "nowhere")) == []

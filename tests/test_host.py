"""Files written whole: what is left, and what is not, whatever the name and whoever was killed."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import jaxprune as jp
from jaxprune import checkpoints, host


def write(path, text="new"):
    with host.written_whole(path) as beside:
        beside.write_text(text)


@pytest.mark.parametrize("name", ["w[0].jp", "[", "*?", "n" * 250, "\u00e9" * 120, ".hidden", "a b"])
def test_any_name_and_nothing_is_left_beside_it(tmp_path, name):
    write(tmp_path / name)
    with pytest.raises(RuntimeError), host.written_whole(tmp_path / name) as beside:
        beside.write_text("half")
        beside.with_name(beside.name + ".more").mkdir()
        raise RuntimeError
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_text() == "new"


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_permissions_stay(tmp_path, mode):
    path = tmp_path / "w.jp"
    path.write_text("old")
    path.chmod(mode)
    jp.save(path, np.ones(3))
    assert path.stat().st_mode & 0o777 == mode and jp.load(path).sum() == 3


def test_links_are_followed(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there/real")
    (tmp_path / "again").symlink_to("link")
    write(tmp_path / "again")  # what it leads to is not there yet
    write(tmp_path / "link", "newer")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there" / "real").read_text() == "newer"
    assert sorted(os.listdir(tmp_path)) == ["again", "link", "there"] and os.listdir(tmp_path / "there") == ["real"]


def test_folders_are_replaced_only_where_they_are_checkpoints(tmp_path):
    mine = tmp_path / "x.jp"
    mine.mkdir()
    (mine / "thesis").write_text("all of it")
    with pytest.raises(IsADirectoryError):
        jp.save(mine, np.ones(3))
    for name in ("x.jp", "x.orbax"):
        mine = mine.rename(tmp_path / name)
        with pytest.raises(checkpoints.CheckpointError, match="no checkpoint that is known here"):
            checkpoints.write(mine, {"w": np.ones(3)}, force=True)
    assert (mine / "thesis").read_text() == "all of it"
    for number in (1, 2):
        checkpoints.write(tmp_path / "c.orbax", {"w": np.full(3, number)}, force=number > 1)
    assert checkpoints.open(tmp_path / "c.orbax").leaves["w"].read().tolist() == [2, 2, 2]
    assert sorted(os.listdir(tmp_path)) == ["c.orbax", "x.orbax"]


def test_leftovers_of_killed_runs_go_and_those_of_live_ones_stay(tmp_path):
    path = tmp_path / "w.jp"
    program = (
        "import sys, jaxprune.host as host\n"
        "with host.written_whole(sys.argv[1]) as beside:\n"
        "    beside.write_text('half'); print('there', flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", program, str(path)]
    killed, live = (subprocess.Popen(argv, stdin=-1, stdout=-1, text=True) for _ in range(2))
    assert killed.stdout.readline() == live.stdout.readline() == "there\n"
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert len(os.listdir(tmp_path)) == 2
    (tmp_path / "w.jp.tmp").write_text("another's")
    write(path)
    assert len(os.listdir(tmp_path)) == 3
    live.communicate("")
    assert live.returncode == 0 and path.read_text() == "half"
    assert sorted(os.listdir(tmp_path)) == ["w.jp", "w.jp.tmp"]


def test_an_interrupt_brings_a_folder_back(tmp_path, monkeypatch):
    old, real, moves = tmp_path / "c", os.replace, []
    old.mkdir()
    (old / "a").write_text("old")

    def interrupted(source, target):
        moves.append(target)
        if len(moves) == 2:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(host.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), host.written_whole(old, over_folder=True) as beside:
        beside.mkdir()
    assert os.listdir(tmp_path) == ["c"] and (old / "a").read_text() == "old"


def test_a_folder_that_a_killed_run_has_put_aside_stays_until_there_is_another(tmp_path, monkeypatch):
    gone = tmp_path / (host._start_of_names("c") + "1234567.abcd.old")
    gone.mkdir()
    monkeypatch.setattr(host, "_runs", lambda process: process != 1234567)
    for left in (2, 1):
        write(tmp_path / "c")
        assert len(os.listdir(tmp_path)) == left

"""The state file: TF's text, relative paths that survive a move, and errors that are never taken for "none"."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import torchsaver as ts
from torchsaver.storage.state_file import format_state, parse_state, relative_state


def _save(directory: Path, *steps: int, **settings: Any) -> list[str]:
    saver = ts.Saver({"w": torch.zeros(2)}, **settings)
    return [saver.save(directory / "m", step) for step in steps]


@pytest.mark.parametrize(
    ("relative", "text"),
    [
        (True, 'model_checkpoint_path: "m-2"\nall_model_checkpoint_paths: "m-1"\nall_model_checkpoint_paths: "m-2"\n'),
        (
            False,
            'model_checkpoint_path: "{0}/m-2"\n'
            + "".join(f'all_model_checkpoint_paths: "{{0}}/m-{n}"\n' for n in (1, 2)),
        ),
    ],
)
def test_state_file_of_a_save_is_tfs_text(tmp_path: Path, relative: bool, text: str) -> None:
    prefixes = _save(tmp_path, 1, 2, save_relative_paths=relative)
    assert (tmp_path / "checkpoint").read_text() == text.format(tmp_path)
    assert ts.get_checkpoint_state(tmp_path) == ts.CheckpointState(prefixes[-1], prefixes)


@pytest.mark.parametrize("copied", [True, False])
def test_latest_checkpoint_of_a_moved_or_copied_directory_is_in_its_new_place(tmp_path: Path, copied: bool) -> None:
    _save(tmp_path / "old", 1, 2)
    (shutil.copytree if copied else shutil.move)(tmp_path / "old", tmp_path / "new")
    latest = ts.latest_checkpoint(tmp_path / "new")
    assert latest == str(tmp_path / "new" / "m-2")
    assert ts.load_checkpoint(latest).keys() == ["w"]


def test_latest_checkpoint_of_a_copy_with_absolute_paths_is_the_original(tmp_path: Path) -> None:
    (prefix,) = _save(tmp_path / "old", 1, save_relative_paths=False)
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    assert ts.latest_checkpoint(tmp_path / "new") == prefix  # as in TF: why relative is the default


def test_latest_checkpoint_in_a_relative_directory_is_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _save(Path("run"), 1)
    assert ts.latest_checkpoint("run") == "run/m-1"
    monkeypatch.chdir("run")
    assert (ts.latest_checkpoint("."), ts.latest_checkpoint("")) == ("./m-1", "m-1")


def test_latest_checkpoint_whose_files_are_gone_is_none_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, newest = _save(tmp_path, 1, 2)
    ts.remove_checkpoint(newest)
    assert ts.latest_checkpoint(tmp_path) is None  # as in TF, never an older one
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert newest in record.getMessage()
    assert str(tmp_path / "checkpoint") in record.getMessage()


@pytest.mark.parametrize(
    "text",
    [
        'model_checkpoint_path "m"',
        'model_checkpoint_path: "m',
        "model_checkpoint_path: m",
        "model_checkpoint_path: 3",
        '\ufeffmodel_checkpoint_path: "m"',
        'model_checkpoint_path: "m"\nunknown: 1',
        '1: "m"',
        "garbage",
        "\x00",
        'model_checkpoint_path: "m"\nlast_preserved_timestamp: "1"',
        'model_checkpoint_path: "\\xff"',
    ],
)
def test_state_file_that_does_not_parse_counts_as_none_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    (tmp_path / "checkpoint").write_text(text, encoding="utf-8")
    assert ts.get_checkpoint_state(tmp_path) is None
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("torchsaver", logging.WARNING)
    assert str(tmp_path / "checkpoint") in record.getMessage()


@pytest.mark.parametrize(
    "text", ["", "\n \n", "# m\n", 'all_model_checkpoint_paths: "m"\n', 'model_checkpoint_path: ""\n']
)
def test_state_file_that_names_no_newest_is_corrupt(tmp_path: Path, text: str) -> None:
    (tmp_path / "checkpoint").write_text(text)
    with pytest.raises(ts.CorruptCheckpointError, match="model_checkpoint_path") as raised:
        ts.latest_checkpoint(tmp_path)
    assert raised.value.path == str(tmp_path / "checkpoint")


def test_state_file_not_in_utf8_is_corrupt_at_the_byte(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_bytes(b'model_checkpoint_path: "\xff"')
    with pytest.raises(ts.CorruptCheckpointError, match="UTF-8") as raised:
        ts.get_checkpoint_state(tmp_path)
    assert raised.value.offset == 24


@pytest.mark.parametrize("name", ["missing/directory", "empty", "file", "taken"])
def test_state_file_that_is_not_there_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "taken" / "checkpoint").mkdir(parents=True)
    assert ts.get_checkpoint_state(tmp_path / name) is None
    assert ts.latest_checkpoint(tmp_path / name) is None
    assert caplog.records == []


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE, errno.EMFILE])
def test_state_file_that_cannot_be_read_raises_and_is_never_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    _save(tmp_path, 1)
    with monkeypatch.context() as patch:

        def fail(path: Any, *args: Any, **kwargs: Any) -> int:
            raise OSError(number, os.strerror(number), path)

        patch.setattr(os, "open", fail)
        for read in (ts.get_checkpoint_state, ts.latest_checkpoint, ts.load_checkpoint):
            with pytest.raises(OSError, match=os.strerror(number)) as raised:
                read(tmp_path)
            assert (raised.value.errno, raised.value.filename) == (number, str(tmp_path / "checkpoint"))


def test_state_file_that_is_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "checkpoint")
    found: list[BaseException] = []

    def read() -> None:
        try:
            ts.get_checkpoint_state(tmp_path)
        except ts.CorruptCheckpointError as error:
            found.append(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(timeout=10)
    assert not reader.is_alive()
    assert "no regular file" in str(found[0])


@pytest.mark.parametrize("given", [None, b"dir", 3])
def test_get_checkpoint_state_of_no_path_is_a_type_error(given: Any) -> None:
    with pytest.raises(TypeError, match="checkpoint_dir"):
        ts.get_checkpoint_state(given)


@pytest.mark.parametrize(
    ("save_dir", "newest", "kept", "wanted"),
    [
        ("/d", "/d/m-2", None, ["/d/m-2"]),
        ("/d", "/d/m-2", ["/d/m-1", "/d/m-2"], ["/d/m-1", "/d/m-2"]),
        ("/d", "/d/m-2", ["/d/m-2", "/d/m-1"], ["/d/m-2", "/d/m-1", "/d/m-2"]),  # as TF: made the last
        ("/d", "rel/m", ["other"], ["other", "rel/m"]),
        ("d", "d/m-2", ["d/m-1", "/abs/m"], ["m-1", "/abs/m", "m-2"]),
        ("d", "e/m", [], ["../e/m"]),
        ("", "m", [], ["m"]),
    ],
)
def test_generate_checkpoint_state_proto_writes_paths_as_tf(
    save_dir: str, newest: str, kept: list[str] | None, wanted: list[str]
) -> None:
    given = None if kept is None else list(kept)
    state = ts.generate_checkpoint_state_proto(save_dir, newest, all_model_checkpoint_paths=given)
    assert state == ts.CheckpointState(wanted[-1], wanted)
    assert given == kept  # TF changes it


@pytest.mark.parametrize("times", [[1.0], [1.0, 2.0, 3.0]])
def test_generate_checkpoint_state_proto_with_times_that_do_not_match_raises(times: list[float]) -> None:
    with pytest.raises(ValueError, match="2 checkpoints"):
        ts.generate_checkpoint_state_proto(
            "d", "d/b", all_model_checkpoint_paths=["d/a"], all_model_checkpoint_timestamps=times
        )


def test_update_checkpoint_state_comes_back_with_all_four_fields(tmp_path: Path) -> None:
    one, two = str(tmp_path / "m-1"), str(tmp_path / "m-2")
    ts.update_checkpoint_state(
        tmp_path,
        two,
        all_model_checkpoint_paths=[one],
        latest_filename="other",
        all_model_checkpoint_timestamps=[0.0, 1712345678.125],
        last_preserved_timestamp=0.1,
    )
    assert ts.get_checkpoint_state(tmp_path) is None
    found = ts.get_checkpoint_state(tmp_path, latest_filename="other")
    assert found == ts.CheckpointState(two, [one, two], [0.0, 1712345678.125], 0.1)


@pytest.mark.parametrize("newest", ["checkpoint", "./checkpoint", "{0}/checkpoint", "{0}/link/checkpoint"])
def test_update_checkpoint_state_over_the_checkpoint_itself_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, newest: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(RuntimeError, match="latest_filename"):
        ts.update_checkpoint_state(tmp_path, newest.format(tmp_path))
    assert os.listdir(tmp_path) == ["link"]


def test_update_checkpoint_state_in_a_missing_directory_raises_with_the_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        ts.update_checkpoint_state(tmp_path / "missing", "m")
    assert raised.value.filename == str(tmp_path / "missing" / "checkpoint")


def test_relative_state_through_a_link_follows_it_as_the_system_does(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a/b")
    kept = [os.path.realpath(tmp_path / "m-1"), os.path.realpath(tmp_path / "a" / "b" / "m-2")]
    state = relative_state(str(tmp_path / "link"), kept)
    assert state == ts.CheckpointState("m-2", ["../../m-1", "m-2"])


PATHS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(newest=PATHS, kept=st.lists(PATHS), times=st.lists(st.floats(allow_nan=False)), preserved=st.floats(min_value=0))
def test_state_formatted_and_parsed_is_the_same(
    newest: str, kept: list[str], times: list[float], preserved: float
) -> None:
    state = ts.CheckpointState(newest, kept, times, preserved)
    assert parse_state(format_state(state)) == state

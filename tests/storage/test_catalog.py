"""What a directory holds, by its state file and by its files' own records."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import torchsaver as ts
from torchsaver.storage import paths
from torchsaver.storage.catalog import Listing, Records, checkpoint_names, read_listing, read_manifest, written_after


def _state(directory: Path, newest: str, *kept: str) -> None:
    lines = [f'model_checkpoint_path: "{newest}"', *(f'all_model_checkpoint_paths: "{name}"' for name in kept)]
    (directory / "checkpoint").write_text("\n".join(lines))


def test_listing_without_a_state_file_is_empty(tmp_path: Path) -> None:
    listing = read_listing(str(tmp_path))
    assert (listing.data, listing.names, listing.outside, listing.problem) == (None, (), (), None)


@pytest.mark.parametrize(
    ("newest", "kept", "names"),
    [
        ("b", ["a", "b"], ("a", "b")),
        ("a", ["a", "b"], ("b", "a")),
        ("c", ["a", "b"], ("a", "b", "c")),
        ("a", [], ("a",)),
        ("a", ["a", "b", "a", "b"], ("b", "a")),
        ("./a", ["a", "b"], ("a", "b")),
    ],
)
def test_listing_has_each_name_once_and_the_newest_last(
    tmp_path: Path, newest: str, kept: list[str], names: tuple[str, ...]
) -> None:
    _state(tmp_path, newest, *kept)
    found = read_listing(str(tmp_path)).names
    assert found[-1] == names[-1] or newest == "./a"
    assert sorted(found) == sorted(names)


def test_listing_keeps_apart_what_stands_elsewhere(tmp_path: Path) -> None:
    _state(tmp_path, "../m-3", "m-1", f"{tmp_path}/m-2", "/etc/m", "sub/m", "m-00001-of-00002", "..")
    listing = read_listing(str(tmp_path))
    assert listing.names == ("m-1", "m-2")
    assert set(listing.outside) == {"/etc/m", "sub/m", "m-00001-of-00002", "..", "../m-3"}


def test_listing_that_has_not_changed_is_the_one_known(tmp_path: Path) -> None:
    directory = str(tmp_path)
    for text in (None, "", "garbage", 'model_checkpoint_path: "m"'):
        if text is not None:
            (tmp_path / "checkpoint").write_text(text)
        known = read_listing(directory)
        assert read_listing(directory, None, known) is known
    _state(tmp_path, "m-2")
    assert read_listing(directory, None, known) is not known


def test_checkpoint_names_are_those_of_indexes_and_files_and_fragments_only_if_asked_for(tmp_path: Path) -> None:
    for name in (
        *("a.safetensors", "b.safetensors.index.json", "b-00001-of-00002.safetensors", ".safetensors"),
        *("c-s0123456789abcdef-00001-of-00002.safetensors", "d.json", "checkpoint", "e.safetensors.tmp"),
    ):
        (tmp_path / name).write_bytes(b"")
    assert checkpoint_names(str(tmp_path)) == ["a", "b"]
    assert checkpoint_names(str(tmp_path), with_fragments=True) == ["a", "b", "c"]


def test_manifest_is_that_of_the_index_or_else_of_the_file_or_else_of_a_shard(tmp_path: Path) -> None:
    values = {"a": torch.ones(4), "b": torch.ones(4)}
    prefix = ts.Saver(values, max_shard_bytes=16).save(tmp_path / "m", 3, metadata="whole")
    assert prefix is not None
    assert read_manifest(prefix).metadata == "whole"
    os.unlink(paths.index_file(prefix))
    assert (read_manifest(prefix).global_step, read_manifest(prefix).metadata) == (3, None)
    for shard in tmp_path.glob("m-3-*"):
        shard.unlink()
    with pytest.raises(FileNotFoundError):
        read_manifest(prefix)


def test_records_of_damaged_foreign_and_special_files_are_none(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    ts.Saver({"x": torch.ones(1)}).save(tmp_path / "m", 1)
    save_file({"x": torch.ones(1)}, tmp_path / "theirs.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"\0" * 100)
    os.mkfifo(tmp_path / "fifo.safetensors")
    (tmp_path / "directory.safetensors").mkdir()
    assert list(Records(str(tmp_path)).refresh()) == ["m-1"]


def test_written_after_compares_times_and_is_false_for_what_is_gone(tmp_path: Path) -> None:
    ts.Saver({"x": torch.ones(1)}).save(tmp_path / "m", 1)
    state, prefix = str(tmp_path / "checkpoint"), str(tmp_path / "m-1")
    for seconds, later in ((5, False), (15, True), (10, False)):
        os.utime(tmp_path / "m-1.safetensors", (10, 10))
        os.utime(state, (seconds, seconds))
        assert written_after(state, prefix) is later
    assert not written_after(state, str(tmp_path / "n"))
    assert not written_after(str(tmp_path / "none"), prefix)


def test_own_names_of_very_many_directories_ends_and_takes_none_for_its_own(tmp_path: Path) -> None:
    given = [f"{tmp_path}/d{number}/m" for number in range(3000)] + [str(tmp_path / "m")]
    found = paths.own_names(str(tmp_path), given)
    assert [prefix for prefix, name in found.items() if name is not None] == [str(tmp_path / "m")]


def test_own_name_through_a_link_to_the_directory_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert paths.own_name(str(tmp_path / "link"), str(tmp_path / "real" / "m")) == "m"
    assert paths.own_name(str(tmp_path / "real"), str(tmp_path / "link" / "m")) == "m"


def test_identities_of_a_listing_are_real_paths_in_its_order(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    _state(tmp_path / "real", "b", "a", "../c", "b")
    real = os.path.realpath(tmp_path / "real")
    assert read_listing(str(tmp_path / "link")).identities == [f"{real}/a", f"{real}/b"]
    assert Listing(str(tmp_path / "none" / "checkpoint")).identities == []


@pytest.mark.parametrize(
    ("names", "others", "listed", "merged"),
    [
        ("", "", "a", "a"),
        ("ab", "", "abc", "abc"),
        ("ab", "", "c", "c"),  # what nobody vouches for leaves the list
        ("axb", "x", "abc", "axbc"),  # another process's stays where it was committed
        ("xab", "x", "bc", "xbc"),
        ("abx", "x", "abc", "abxc"),
        ("bx", "x", "abc", "abxc"),  # one that had been dropped from the list comes first
        ("axb", "x", "ba", "xba"),  # saved again: the newest
    ],
)
def test_merged_is_in_order_of_commit_with_the_newest_last(
    tmp_path: Path, names: str, others: str, listed: str, merged: str
) -> None:
    directory = os.path.realpath(tmp_path)
    listing = Listing(f"{directory}/checkpoint", names=tuple(names))
    found = listing.merged([f"{directory}/{n}" for n in others], [f"{directory}/{n}" for n in listed])
    assert "".join(os.path.basename(identity) for identity in found) == merged


def test_state_without_some_keeps_all_else_as_it_is_written(tmp_path: Path) -> None:
    _state(tmp_path, f"{tmp_path}/c", "a", "./b", "../elsewhere/a", f"{tmp_path}/c")
    with open(tmp_path / "checkpoint", "a") as file:
        file.write("".join(f"\nall_model_checkpoint_timestamps: {n}" for n in (1, 2, 3, 4)))
    listing = read_listing(str(tmp_path))
    real = os.path.realpath(tmp_path)
    state = listing.state_without({f"{real}/b"})
    assert state.all_model_checkpoint_paths == ["a", "../elsewhere/a", f"{tmp_path}/c"]
    assert state.all_model_checkpoint_timestamps == [1.0, 3.0, 4.0]
    assert state.model_checkpoint_path == f"{tmp_path}/c"
    assert listing.state_without(set()).all_model_checkpoint_paths[1] == "./b"


def test_state_without_of_no_state_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ts.CorruptCheckpointError, match="newest checkpoint"):
        read_listing(str(tmp_path)).state_without(set())

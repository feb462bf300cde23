"""Faults that were there once, each named for its symptom."""

import fcntl
import gc
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import no_room_for_the_state_file
from roundtrip import Held
from torch import nn

import torchsaver as ts
from torchsaver.formats import regular_file
from torchsaver.formats.manifest import Manifest
from torchsaver.formats.safetensors_writer import FilePlan
from torchsaver.retention.window import Record, TFRules, Window
from torchsaver.rotation import Rotation
from torchsaver.storage import checkpoint_files, disk, paths


def save(path: Path, step: int | None = None, **values: torch.Tensor) -> str:
    prefix = ts.Saver(values).save(path, step)
    assert prefix is not None
    return prefix


@pytest.mark.parametrize("turned", [False, True])
def test_freed_storage_was_saved_as_garbage_and_written_through(turned: bool, tmp_path: Path) -> None:
    prefix = save(tmp_path / "m", a=torch.ones(2), x=torch.ones(3, 4))
    a, x = torch.zeros(2), torch.ones(4, 3).t() if turned else torch.ones(3, 4)
    x.untyped_storage().resize_(0)
    with pytest.raises(ts.VarListError, match="freed"):
        save(tmp_path / "n", x=x)
    with pytest.raises(ts.MismatchError, match="freed"):
        ts.Saver({"a": a, "x": x}).restore(prefix)
    assert a.tolist() == [0.0, 0.0]


def test_parameters_tied_through_a_view_took_the_last_value_without_a_word(tmp_path: Path) -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 2, bias=False), "b": nn.Linear(2, 3, bias=False)})
    prefix = ts.Saver(model).save(tmp_path / "untied")
    model["b"].weight = nn.Parameter(model["a"].weight.detach().t())
    tied = ts.Saver(model).save(tmp_path / "tied")
    before = model["a"].weight.clone()
    with pytest.raises(ts.MismatchError, match="shares memory") as caught:
        ts.Saver(model).restore(prefix)
    assert [key for key, _ in caught.value.targets] == ["a.weight"]
    assert torch.equal(model["a"].weight, before)
    nn.init.zeros_(model["a"].weight)
    ts.Saver(model).restore(tied)
    assert torch.equal(model["a"].weight, before)


def test_views_that_only_interleave_or_touch_are_restored(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    values = {"left": base[:, :3], "right": base[:, 3:]}
    prefix = ts.Saver(values).save(tmp_path / "m")
    expected = base.clone()
    base.zero_()
    ts.Saver(values).restore(prefix)
    assert torch.equal(base, expected)


def test_views_of_another_dtype_and_conjugates_on_one_memory_are_restored_when_they_agree(tmp_path: Path) -> None:
    base = torch.randn(4, 3, dtype=torch.complex64)
    values = {"bits": torch.view_as_real(base).view(torch.int32), "conj": base.conj().t(), "imag": base.conj().imag[1:]}
    expected = base.clone()
    prefix = ts.Saver(values).save(tmp_path / "m")
    base.zero_()
    ts.Saver(values).restore(prefix)
    assert torch.equal(base, expected)


def test_keys_of_a_state_came_back_in_another_order(tmp_path: Path) -> None:
    prefix = ts.Saver({"o": Held({"b": 1, "a": {"d": 2, "c": 3}})}).save(tmp_path / "m")
    held = Held(None)
    ts.Saver({"o": held}).restore(prefix)
    assert json.dumps(held.state) == '{"b": 1, "a": {"d": 2, "c": 3}}'


def test_object_kept_its_new_state_when_the_tensors_could_not_be_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = ts.Saver({"o": Held("new"), "x": torch.ones(2)}).save(tmp_path / "m")
    held = Held("old")
    preadv, calls = os.preadv, iter(range(100))

    def failing(fd: int, buffers: Any, offset: int) -> int:
        if next(calls) == 3:  # length, header, check, and then the copy
            raise OSError(5, "Input/output error")
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(OSError, match="Input/output"):
        ts.Saver({"o": held, "x": torch.zeros(2)}).restore(prefix)
    assert held.state == "old"


@pytest.mark.parametrize("name", ["m-1.safetensors", "m-1.safetensors.index.json", ".torchsaver-0123456789abcdef.tmp"])
def test_state_file_was_written_over_a_checkpoint(name: str, tmp_path: Path) -> None:
    prefix = save(tmp_path / "m", 1, x=torch.ones(1))
    with pytest.raises(ValueError, match="latest_filename"):
        ts.Saver({"x": torch.ones(1)}).save(tmp_path / "m", 2, latest_filename=name)
    assert ts.load_variable(prefix, "x").item() == 1


@pytest.mark.parametrize("name", ["m-00001-of-00002", "m.safetensors", "m.safetensors.index.json"])
def test_prefix_that_looks_like_a_file_of_another_checkpoint_destroyed_it(name: str, tmp_path: Path) -> None:
    saver = ts.Saver({"a": torch.ones(4), "b": torch.ones(4)}, max_shard_bytes=16)
    prefix = saver.save(tmp_path / "m")
    with pytest.raises(ValueError, match="no name for a checkpoint"):
        save(tmp_path / name, x=torch.ones(1))
    saver.restore(prefix)


def test_checkpoint_listed_twice_was_deleted_while_it_was_listed(tmp_path: Path) -> None:
    prefix = save(tmp_path / "m", 1, x=torch.ones(1))
    saver = ts.Saver({"x": torch.ones(1)}, max_to_keep=2)
    saver.recover_last_checkpoints([prefix, prefix])
    saver.save(tmp_path / "m", 2)
    assert all(ts.checkpoint_exists(listed) for listed in saver.last_checkpoints)


def test_shards_of_a_save_that_was_killed_stayed_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = ts.Saver({"a": torch.ones(4), "b": torch.ones(4)}, max_shard_bytes=16)
    publish = disk.Stage.publish

    def killed_before_the_index(stage: disk.Stage, names: Any = None, *, only_new: bool = False) -> None:
        if not only_new:
            raise SystemError("killed")
        publish(stage, names, only_new=True)

    with monkeypatch.context() as patched:
        patched.setattr(disk.Stage, "publish", killed_before_the_index)
        patched.setattr(disk, "remove", lambda _: None)
        with pytest.raises(SystemError):
            saver.save(tmp_path / "m", 1)
    assert len([name for name in os.listdir(tmp_path) if paths.is_shard_of("m-1", name)]) == 2
    assert not ts.checkpoint_exists(tmp_path / "m-1")
    saver.save(tmp_path / "m", 1)
    shards = [name for name in os.listdir(tmp_path) if paths.is_shard_of("m-1", name)]
    assert len(shards) == 2
    saver.restore(tmp_path / "m-1")


def test_shards_that_another_program_left_under_our_names_are_not_removed(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.ones(1)}, tmp_path / "m-00001-of-00002.safetensors")
    prefix = save(tmp_path / "m", x=torch.ones(1))
    ts.remove_checkpoint(prefix)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", "m-00001-of-00002.safetensors"]


def test_reader_called_a_sharded_checkpoint_damaged_while_it_was_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = ts.Saver({"a": torch.ones(4), "b": torch.ones(4)}, max_shard_bytes=16)
    prefix = saver.save(tmp_path / "m")
    read = checkpoint_files.read_regular
    once = iter([True])

    def replaced_after_the_index_was_read(path: str, max_bytes: int) -> bytes:
        data = read(path, max_bytes)
        if next(once, False):
            saver.save(tmp_path / "m")
        return data

    monkeypatch.setattr("torchsaver.open_checkpoint.read_regular", replaced_after_the_index_was_read)
    assert ts.load_variable(prefix, "b").tolist() == [1.0] * 4


def test_state_file_of_another_directory_listed_a_relative_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = ts.Saver({"x": torch.ones(1)}, save_relative_paths=False)
    for directory in ("one", "two"):
        (tmp_path / directory).mkdir()
        monkeypatch.chdir(tmp_path / directory)
        saver.save("m", len(directory) + len(saver.last_checkpoints))
    state = ts.get_checkpoint_state(tmp_path / "two")
    assert state is not None
    assert all(ts.checkpoint_exists(prefix) for prefix in state.all_model_checkpoint_paths)


def test_header_too_large_to_be_read_back_was_written_and_the_old_checkpoint_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = ts.Saver({"x": torch.ones(1)}, max_to_keep=1)
    saver.save(tmp_path / "m", 1)
    monkeypatch.setattr("torchsaver.formats.safetensors_header.MAX_HEADER_BYTES", 2000)
    with pytest.raises(ValueError, match="less metadata"):
        saver.save(tmp_path / "m", 2, metadata="x" * 3000)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", "m-1.safetensors"]
    assert saver.restore(tmp_path / "m-1").global_step == 1


def test_reader_that_was_never_closed_kept_its_file_open(tmp_path: Path) -> None:
    prefix = save(tmp_path / "m", x=torch.ones(1))
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        ts.load_checkpoint(prefix).get_tensor("x")
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_key_the_terminal_cannot_show_was_a_traceback(tmp_path: Path) -> None:
    save(tmp_path / "m", é=torch.ones(1))
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "torchsaver", "inspect", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\xe9" in done.stdout


@pytest.mark.parametrize(
    "call",
    [
        lambda: ts.Saver({"x": torch.ones(1)}).recover_last_checkpoints("run/m-1"),
        lambda: ts.get_checkpoint_mtimes("run/m-1"),
        lambda: ts.Saver({"x": torch.ones(1)}).restore(None),  # type: ignore[arg-type]
        lambda: ts.Saver({"x": torch.ones(1)}).save("m", torch.tensor(1, device="meta")),
    ],
)
def test_wrong_type_was_taken_apart_or_ended_elsewhere(call: Any) -> None:
    with pytest.raises(TypeError):
        call()


def test_tensor_as_var_list_of_a_deferred_saver_was_asked_for_its_truth() -> None:
    with pytest.raises(ValueError, match="defer_build"):
        ts.Saver(torch.zeros(3), defer_build=True)
    with ts.Collection():
        ts.Saver([], defer_build=True)


def test_directory_given_to_restore_names_what_finds_its_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ts.CheckpointNotFoundError, match="latest_checkpoint"):
        ts.Saver({"x": torch.ones(1)}).restore(tmp_path)


def test_prefix_that_is_not_utf8_left_a_checkpoint_no_state_file_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="UTF-8"):
        ts.Saver({"x": torch.ones(1)}).save(os.fsencode(tmp_path) + b"/\xff")
    assert os.listdir(tmp_path) == []


def test_state_file_name_too_long_left_a_checkpoint_no_state_file_names(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too long"):
        ts.Saver({"x": torch.ones(1)}).save(tmp_path / "m", latest_filename="s" * 300)
    assert os.listdir(tmp_path) == []


def test_module_attribute_that_was_removed_was_an_attribute_error(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    saver = ts.Saver([model.weight, model.bias], names_from=model)
    model.bias = None
    with pytest.raises(ts.VarListError, match="'bias' is not in its module"):
        saver.save(tmp_path / "m")


def test_checkpoint_was_destroyed_by_one_whose_prefix_begins_like_it(tmp_path: Path) -> None:
    values = {"a": torch.ones(4), "b": torch.ones(4)}
    prefix = ts.Saver(values, max_shard_bytes=16).save(tmp_path / "m-s20240101")
    ts.Saver(values, max_shard_bytes=16).save(tmp_path / "m")
    ts.Saver(values).save(tmp_path / "m")
    ts.remove_checkpoint(tmp_path / "m")
    ts.Saver(values).restore(prefix)
    with pytest.raises(ValueError, match="shard"):
        save(tmp_path / "m-s0123456789abcdef", x=torch.ones(1))


def test_shards_of_two_processes_took_each_others_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = ({"a": torch.full((4,), fill), "b": torch.full((4,), fill)} for fill in (1.0, 2.0))
    names = paths.shard_files(str(tmp_path / "m"), 2)
    prefix = ts.Saver(one, max_shard_bytes=16).save(tmp_path / "m")
    monkeypatch.setattr(paths, "shard_files", lambda *_: names)  # as if the other had looked before the first was there
    with pytest.raises(FileExistsError, match="m-00001-of-00002"):
        ts.Saver(two, max_shard_bytes=16).save(tmp_path / "m")
    with ts.load_checkpoint(str(prefix)) as reader:
        reader.verify()
        assert reader.get_tensor("b").tolist() == [1.0] * 4


def test_shards_of_a_live_writer_are_not_taken_for_leftovers(tmp_path: Path) -> None:
    values = {"a": torch.ones(4)}
    with disk.Stage() as stage:
        FilePlan(values).write(stage.create(str(tmp_path / "m-00001-of-00002.safetensors")), values, Manifest())
        stage.publish(only_new=True)
        ts.Saver(values).save(tmp_path / "m")
        assert (tmp_path / "m-00001-of-00002.safetensors").exists()
    ts.Saver(values).save(tmp_path / "m")
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", "m.safetensors"]


def test_shards_are_published_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: str) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    saver = ts.Saver({"a": torch.ones(4), "b": torch.ones(4)}, max_shard_bytes=16)
    saver.restore(saver.save(tmp_path / "m"))


def test_index_that_no_longer_counts_is_gone_for_good_before_the_save_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"a": torch.ones(4), "b": torch.ones(4)}
    ts.Saver(values, max_shard_bytes=16).save(tmp_path / "m")
    done: list[str] = []
    unlink, sync = os.unlink, disk.sync_directory
    monkeypatch.setattr(os, "unlink", lambda path: (done.append(Path(path).name), unlink(path)))
    monkeypatch.setattr(disk, "sync_directory", lambda path: (done.append("sync"), sync(path)))
    ts.Saver(values).save(tmp_path / "m", write_state=False)
    assert done[:3] == ["sync", "m.safetensors.index.json", "sync"]


def test_index_is_removed_before_its_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = ts.Saver({"a": torch.ones(4), "b": torch.ones(4)}, max_shard_bytes=16).save(tmp_path / "m")
    done: list[str] = []
    monkeypatch.setattr(os, "unlink", lambda path: done.append(Path(path).name))
    ts.remove_checkpoint(str(prefix))
    assert done[0] == "m.safetensors.index.json"
    assert len(done) == 3


def test_directory_named_like_the_index_is_found_before_writing(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors.index.json").mkdir()
    with pytest.raises(IsADirectoryError, match=r"index\.json"):
        save(tmp_path / "m", x=torch.ones(1))
    assert os.listdir(tmp_path) == ["m.safetensors.index.json"]


def test_listed_checkpoint_is_not_doomed_any_more(tmp_path: Path) -> None:
    rotation = Rotation(TFRules(2, math.inf), relative_paths=True)
    names = [save(tmp_path / "m", step, x=torch.ones(1)) for step in (1, 2)]
    rotation._window = Window(doomed=(Record(names[0], 0.0, paths.identity(names[0])),))
    rotation.replace([(name, 0.0) for name in names])
    rotation._remove_old(str(tmp_path))
    assert ts.checkpoint_exists(names[0])


def test_default_device_was_asked_for_host_memory(tmp_path: Path) -> None:
    turned = torch.arange(6.0).reshape(2, 3).t()
    target = torch.zeros(2, 3).t()
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    with torch.device("meta"):
        prefix = ts.Saver({"w": turned, "o": optimizer, "p": parameter}).save(tmp_path / "m")
        ts.Saver({"w": target, "o": optimizer, "p": parameter}).restore(prefix)
        assert ts.load_variable(str(prefix), "w").device.type == "cpu"
    assert torch.equal(target, turned)


def test_shared_memory_that_starts_between_two_items_was_a_runtime_error(tmp_path: Path) -> None:
    base = torch.randn(4, dtype=torch.complex64)
    values = {"imag": base.imag, "rest": base[1:]}
    expected = base.clone()
    prefix = ts.Saver(values).save(tmp_path / "m")
    base.zero_()
    ts.Saver(values).restore(prefix)
    assert torch.equal(base.imag, expected.imag)
    assert torch.equal(base[1:], expected[1:])


def test_device_that_fails_after_all_was_checked_says_what_has_been_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = save(tmp_path / "m", a=torch.ones(2), b=torch.ones(2))
    preadv, calls = os.preadv, iter(range(100))

    def failing(fd: int, buffers: Any, offset: int) -> int:
        if next(calls) == 3:
            raise OSError(5, "Input/output error")
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", failing)
    a = torch.zeros(2)
    b = torch.zeros(2, 2)[:, 0]  # has gaps: it is filled after those that have none
    with pytest.raises(OSError, match=r"some tensors may have their new values by now, and some not.*m\.safetensors"):
        ts.Saver({"a": a, "b": b}).restore(prefix, verify=False)
    assert (a.tolist(), b.tolist()) == ([1.0, 1.0], [0.0, 0.0])


def test_variable_inside_a_tracked_module_under_its_own_name_was_refused(tmp_path: Path) -> None:
    with ts.Collection():
        module = nn.Module()
        module.w = ts.Variable(1.0, name="w")
        ts.track(module)
        assert ts.list_variables(str(ts.Saver().save(tmp_path / "m"))) == [("w", [])]


@pytest.mark.parametrize(
    "value", [np.float64(0.1), np.float32("nan"), np.int8(-3), np.bool_(True), np.complex64(1 + 2j)]
)
def test_numpy_number_in_a_state_was_no_number(value: Any, tmp_path: Path) -> None:
    prefix = ts.Saver({"o": Held({"lr": value})}).save(tmp_path / "m")
    held = Held(None)
    ts.Saver({"o": held}).restore(prefix)
    assert type(held.state["lr"]) is type(value)
    assert held.state["lr"].tobytes() == value.tobytes()


def test_state_that_cannot_be_stored_showed_only_at_the_first_save() -> None:
    with pytest.raises(ts.VarListTypeError, match=r"o\.thing"):
        ts.Saver({"o": Held({"thing": object()})})


@pytest.mark.parametrize(
    ("content", "what"), [(b"PK\x03\x04" + bytes(60), "torch.save"), (b"model_checkpoint_path: ''", "state file")]
)
def test_file_of_another_kind_is_called_what_it_is(content: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ts.CorruptCheckpointError, match=what):
        ts.load_checkpoint(tmp_path / "file")


def test_temporary_file_swept_between_its_creation_and_its_lock_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, calls = fcntl.flock, iter(range(10))

    def swept_before(fd: int, operation: int) -> None:
        if next(calls) == 0:  # another process's sweep has just taken the file for a dead writer's
            os.unlink(os.readlink(f"/proc/self/fd/{fd}"))
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", swept_before)
    prefix = save(tmp_path / "m", x=torch.ones(1))
    assert next(calls) > 2
    assert ts.load_variable(prefix, "x").item() == 1
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", "m.safetensors"]


def test_latest_checkpoint_hung_on_a_state_file_with_nan_times(tmp_path: Path) -> None:
    text = 'model_checkpoint_path: "m-1"\nall_model_checkpoint_paths: "m-1"\nall_model_checkpoint_timestamps: nan\n'
    (tmp_path / "checkpoint").write_text(text)
    assert ts.latest_checkpoint(tmp_path) is None


def test_latest_checkpoint_that_was_rotated_away_meanwhile_was_called_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = ts.Saver({"x": torch.ones(1)}, max_to_keep=1)
    saver.save(tmp_path / "m", 1)
    find, once = paths.find_checkpoint, iter([True])

    def rotated_first(prefix: str) -> str | None:
        if next(once, False):
            saver.save(tmp_path / "m", 2)
        return find(prefix)

    monkeypatch.setattr(paths, "find_checkpoint", rotated_first)
    assert ts.latest_checkpoint(tmp_path) == str(tmp_path / "m-2")


def test_directory_was_read_through_a_state_file_that_leads_out_of_it(tmp_path: Path) -> None:
    save(tmp_path / "other" / "m", 1, x=torch.ones(1))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint").write_text('model_checkpoint_path: "../other/m-1"\n')
    with pytest.raises(ts.UnsupportedCheckpointError, match="outside the directory"):
        ts.load_checkpoint(tmp_path / "run")


def _shards_alone(directory: Path) -> None:
    """Leave what a first sharded save leaves that dies before its index."""
    values = {"a": torch.arange(4.0), "b": torch.arange(400.0)}
    ts.Saver(values, max_shard_bytes=64).save(directory / "m", 1)
    (directory / "checkpoint").unlink()
    (directory / "m-1.safetensors.index.json").unlink()


def test_newest_valid_hung_on_shards_without_an_index(tmp_path: Path) -> None:
    _shards_alone(tmp_path)
    assert ts.newest_valid_checkpoint(tmp_path) is None


def test_shards_without_an_index_were_taken_over_as_a_checkpoint(tmp_path: Path) -> None:
    _shards_alone(tmp_path)
    saver = ts.Saver({"x": torch.ones(1)})
    saver.save(tmp_path / "m", 2)
    assert [os.path.basename(path) for path in saver.last_checkpoints] == ["m-2"]


def test_newest_valid_hung_on_a_dangling_link(tmp_path: Path) -> None:
    prefix = save(tmp_path / "m", 1, x=torch.ones(1))
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "m-2"\n')
    (tmp_path / "m-2.safetensors").symlink_to(tmp_path / "nowhere")
    assert ts.newest_valid_checkpoint(tmp_path) == prefix


def test_leftover_link_to_a_pinned_shard_was_not_swept(tmp_path: Path) -> None:
    saver = ts.Saver({"a": torch.ones(4), "b": torch.ones(4)}, max_shard_bytes=16)
    saver.save(tmp_path / "m", 1)
    os.link(tmp_path / "m-1-00001-of-00002.safetensors", tmp_path / ".torchsaver-0123456789abcdef.tmp")
    ts.newest_valid_checkpoint(tmp_path)
    saver.save(tmp_path / "m", 2)
    assert not (tmp_path / ".torchsaver-0123456789abcdef.tmp").exists()


def test_shard_that_seemed_gone_once_led_to_an_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = ts.Saver({"a": torch.ones(4), "b": torch.ones(4)}, max_shard_bytes=16)
    prefixes = [saver.save(tmp_path / "m", step) for step in (1, 2)]
    opened, once = regular_file.open_regular, iter([True])

    def gone_once(path: str) -> tuple[int, int]:
        if "m-2-00002" in path and next(once, False):
            raise FileNotFoundError(2, "No such file or directory", path)
        return opened(path)

    monkeypatch.setattr(regular_file, "open_regular", gone_once)
    assert ts.newest_valid_checkpoint(tmp_path) == prefixes[1]


def test_checkpoints_that_another_listed_while_a_first_save_was_waiting_were_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = ts.Saver({"x": torch.ones(1)}), ts.Saver({"x": torch.ones(1)})
    create, once = disk.Stage.create, iter([True])

    def meanwhile(stage: disk.Stage, path: str) -> disk.NewFile:
        if path.endswith("b-1.safetensors") and next(once, False):
            one.save(tmp_path / "a", 1)
        return create(stage, path)

    monkeypatch.setattr(disk.Stage, "create", meanwhile)
    two.save(tmp_path / "b", 1)
    state = ts.get_checkpoint_state(tmp_path)
    assert state is not None
    assert [os.path.basename(path) for path in state.all_model_checkpoint_paths] == ["a-1", "b-1"]


def test_shards_of_a_first_save_that_died_stayed_for_ever(tmp_path: Path) -> None:
    _shards_alone(tmp_path)
    save(tmp_path / "m", 2, x=torch.ones(1))
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", "m-2.safetensors"]


def test_save_in_a_signal_handler_took_the_lock_from_the_save_it_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver, refused = ts.Saver({"x": torch.ones(1)}), []
    sync, once = disk.NewFile.sync, iter([True])

    def interrupted(file: disk.NewFile) -> None:
        if file.path.endswith("checkpoint") and next(once, False):
            try:
                ts.Saver({"x": torch.ones(1)}).save(tmp_path / "preempt")
            except RuntimeError as error:
                refused.append(str(error))
        sync(file)

    monkeypatch.setattr(disk.NewFile, "sync", interrupted)
    prefix = saver.save(tmp_path / "m", 1)
    assert prefix is not None
    assert "set a flag" in refused[0]
    saver.restore(prefix)
    assert ts.latest_checkpoint(tmp_path) == prefix


def test_save_in_a_signal_handler_was_forgotten_by_the_save_it_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = ts.Saver({"x": torch.ones(1)})
    create, once = disk.Stage.create, iter([True])

    def interrupted(stage: disk.Stage, path: str) -> disk.NewFile:
        if next(once, False):
            saver.save(tmp_path / "m", 15)
        return create(stage, path)

    monkeypatch.setattr(disk.Stage, "create", interrupted)
    saver.save(tmp_path / "m", 1)
    assert [os.path.basename(path) for path in saver.last_checkpoints] == ["m-15", "m-1"]
    state = ts.get_checkpoint_state(tmp_path)
    assert state is not None
    assert [os.path.basename(path) for path in state.all_model_checkpoint_paths] == ["m-15", "m-1"]


@pytest.mark.parametrize("by", ["this saver", "another saver", "another program"])
def test_file_that_took_the_name_of_an_old_checkpoint_was_removed_for_it(tmp_path: Path, by: str) -> None:
    from safetensors.torch import save_file

    saver = ts.Saver({"x": torch.ones(1)}, max_to_keep=1)
    for step in (1, 2):
        saver.save(tmp_path / "m", step)  # 2 says that 1 is to go
    if by == "this saver":
        saver.save(tmp_path / "m", 1, write_state=False)
        kept = "m-1"
    elif by == "another saver":
        ts.Saver({"x": torch.ones(1)}).save(tmp_path / "m", 2, write_state=False)
        kept = "m-2"
    else:
        save_file({"mine": torch.ones(3)}, tmp_path / "m-2.safetensors")
        kept = "m-2"
    for step in (3, 4):
        saver.save(tmp_path / "m", step)
    assert ts.checkpoint_exists(tmp_path / kept)


def test_told_checkpoints_were_removed_with_the_hours_rule_off(tmp_path: Path) -> None:
    old = save(tmp_path / "old", x=torch.ones(1))
    saver = ts.Saver({"x": torch.ones(1)}, max_to_keep=1, keep_checkpoint_every_n_hours=None)
    saver.set_last_checkpoints([old])
    saver.save(tmp_path / "new")
    assert ts.checkpoint_exists(old)


def test_old_checkpoint_was_taken_over_and_removed_when_the_state_file_was_lost(tmp_path: Path) -> None:
    saver = ts.Saver({"x": torch.ones(1)}, max_to_keep=0)
    for step in range(1, 6):
        saver.save(tmp_path / "m", step)
    (tmp_path / "checkpoint").unlink()
    again = ts.Saver({"x": torch.ones(1)}, max_to_keep=2)
    again.resume(tmp_path)
    for step in (6, 7):
        again.save(tmp_path / "m", step)
    assert ts.checkpoint_exists(tmp_path / "m-1")


def test_save_that_failed_over_an_unlisted_checkpoint_had_it_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = ts.Saver({"x": torch.ones(1)})
    saver.save(tmp_path / "m", 1)
    saver.save(tmp_path / "best", write_state=False)
    with no_room_for_the_state_file():
        saver.save(tmp_path / "best")
    saver.save(tmp_path / "m", 2)
    assert ts.checkpoint_exists(tmp_path / "best")


def test_state_file_that_says_the_same_again_made_an_old_checkpoint_a_leftover(tmp_path: Path) -> None:
    saver = ts.Saver({"x": torch.ones(1)}, max_to_keep=0)
    for name in ("best", "last", "best"):
        saver.save(tmp_path / name)
    os.utime(tmp_path / "checkpoint", (5, 5))  # a clock that was set back
    save(tmp_path / "other", x=torch.ones(1))
    assert ts.checkpoint_exists(tmp_path / "last")


def test_record_with_the_last_of_all_numbers_made_the_next_save_unreadable(tmp_path: Path) -> None:
    from torchsaver.formats.commit import MAX_SEQUENCE, Commit

    commit = Commit(MAX_SEQUENCE, 0, "checkpoint", None, 0, True, (), ())
    checkpoint_files.write_checkpoint(str(tmp_path / "theirs"), {"w": torch.zeros(1)}, Manifest(commit=commit))
    prefix = save(tmp_path / "m", 1, x=torch.ones(1))
    assert ts.load_variable(prefix, "x").item() == 1


def test_order_of_commit_began_again_for_a_saver_that_keeps_all(tmp_path: Path) -> None:
    for steps in (range(1, 6), range(6, 8)):
        saver = ts.Saver({"x": torch.ones(1)}, max_to_keep=0)
        saver.resume(tmp_path)
        for step in steps:
            saver.save(tmp_path / "m", step)
        (tmp_path / "checkpoint").unlink()
    assert ts.newest_valid_checkpoint(tmp_path) == str(tmp_path / "m-7")


def test_failed_commit_came_back_over_a_list_that_was_set_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = ts.Saver({"x": torch.ones(1)}, max_to_keep=2)
    for step in (1, 2):
        saver.save(tmp_path / "m", step)
    calls, sync = iter(range(9)), disk.sync_directory

    def failing(directory: str) -> None:
        if next(calls) == 1:
            raise OSError(5, "Input/output error", directory)
        sync(directory)

    with monkeypatch.context() as patch:
        patch.setattr(disk, "sync_directory", failing)
        with pytest.raises(OSError, match="Input/output"):
            saver.save(tmp_path / "m", 3)
    saver.set_last_checkpoints([str(tmp_path / "m-2"), str(tmp_path / "m-3")])
    saver.save(tmp_path / "m", 4)
    assert ts.checkpoint_exists(tmp_path / "m-2")


def test_leftover_shard_that_cannot_be_opened_failed_every_save(tmp_path: Path) -> None:
    values = {"a": torch.ones(4), "b": torch.ones(4)}
    ts.Saver(values, max_shard_bytes=16).save(tmp_path / "m", 1)
    (tmp_path / "m-1.safetensors.index.json").unlink()
    (tmp_path / "m-1-00001-of-00002.safetensors").rename(tmp_path / "elsewhere")
    (tmp_path / "m-1-00001-of-00002.safetensors").symlink_to(tmp_path / "elsewhere")
    save(tmp_path / "m", 1, **values)
    assert ts.newest_valid_checkpoint(tmp_path) == str(tmp_path / "m-1")


def test_what_is_not_ours_decided_whether_there_had_been_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").mkdir()
    (tmp_path / "bert.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    assert ts.newest_valid_checkpoint(tmp_path) is None
    prefix = save(tmp_path / "m", 1, x=torch.ones(1))
    (tmp_path / "checkpoint").unlink()
    assert ts.newest_valid_checkpoint(tmp_path) == prefix
    (tmp_path / "m-1.safetensors").rename(tmp_path / "elsewhere")
    (tmp_path / "m-1.safetensors").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ts.NoValidCheckpointError, match="gone"):
        ts.newest_valid_checkpoint(tmp_path)


def test_shards_without_an_index_stayed_where_all_is_kept(tmp_path: Path) -> None:
    _shards_alone(tmp_path)
    ts.Saver({"x": torch.ones(1)}, max_to_keep=0).save(tmp_path / "m", 2)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", "m-2.safetensors"]


def test_state_file_s_name_that_is_not_utf_8_was_a_unicode_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="latest_filename"):
        ts.Saver({"x": torch.ones(1)}).save(tmp_path / "m", latest_filename="ck\udcff")

import errno
import json
import os
import subprocess
import sys
import textwrap
from multiprocessing import get_context

import pytest

from nnunet_ext import files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


class TestWhole:
    def test_a_file_appears_once_the_block_is_over(self, tmp_path):
        with files.whole(tmp_path / "new" / "a.json") as temporary:
            temporary.write_text("1")
            assert not (tmp_path / "new" / "a.json").exists()
            assert temporary.suffix == ".json"
        assert names(tmp_path / "new") == ["a.json"]

    def test_a_link_stays_one_and_rights_stay(self, tmp_path):
        (tmp_path / "shared.json").write_text("old")
        (tmp_path / "shared.json").chmod(0o664)
        (tmp_path / "a.json").symlink_to(tmp_path / "shared.json")
        with files.whole(tmp_path / "a.json") as temporary:
            temporary.write_text("new")
        assert (tmp_path / "a.json").is_symlink()
        assert (tmp_path / "shared.json").read_text() == "new"
        assert (tmp_path / "shared.json").stat().st_mode & 0o777 == 0o664

    def test_what_was_there_stays_where_the_block_fails(self, tmp_path):
        (tmp_path / "a.json").write_text("old")

        def write():
            with files.whole(tmp_path / "a.json") as temporary:
                temporary.write_text("ha")
                raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            write()
        assert names(tmp_path) == ["a.json"]
        assert (tmp_path / "a.json").read_text() == "old"

    def test_what_the_check_refuses_is_not_renamed(self, tmp_path):
        def check(path):
            raise ValueError(f"{path.stat().st_size} bytes")

        with pytest.raises(ValueError, match="^2 bytes$"), files.whole(tmp_path / "a", check) as temporary:
            temporary.write_text("ha")
        assert names(tmp_path) == []

    def test_two_writers_have_names_of_their_own(self, tmp_path):
        with files.whole(tmp_path / "a") as first, files.whole(tmp_path / "a") as second:
            first.write_text("first")
            second.write_text("second")
        assert (tmp_path / "a").read_text() == "first"  # the one that ended last

    def test_long_names_fit_the_file_system(self, tmp_path):
        name = "n" * 240 + ".nii.gz"
        with files.whole(tmp_path / name) as temporary:
            temporary.write_text("")
            assert temporary.name.endswith(".nii.gz")
        assert names(tmp_path) == [name]

    def test_a_folder_replaces_a_folder(self, tmp_path):
        (tmp_path / "model" / "old").mkdir(parents=True)
        with files.whole(tmp_path / "model") as temporary:
            (temporary / "new").mkdir(parents=True)
        assert names(tmp_path) == ["model"]
        assert names(tmp_path / "model") == ["new"]

    def test_files_of_a_case_are_moved_with_the_one_that_counts_last(self, tmp_path, monkeypatch):
        moved = []
        replace = os.replace
        monkeypatch.setattr(os, "replace", lambda old, new: (moved.append(new.name), replace(old, new)))
        with files.whole_files(tmp_path, last=lambda file: file.suffix == ".gz") as folder:
            for name in ("a.nii.gz", "a.pkl", "a.npz"):
                (folder / name).write_text("")
        assert moved == ["a.npz", "a.pkl", "a.nii.gz"]
        assert names(tmp_path) == ["a.nii.gz", "a.npz", "a.pkl"]


class TestFullDisk:
    def test_no_space_is_named_with_the_file(self, tmp_path):
        with (
            pytest.raises(files.DiskFullError, match=r"a\.b2nd cannot be written \(.*No space.*free some"),
            files.whole(tmp_path / "a.b2nd"),
        ):
            raise OSError(errno.ENOSPC, "No space left on device")

    def test_what_libraries_call_it_is_put_down_to_a_full_disk(self, tmp_path, monkeypatch):
        monkeypatch.setattr(files.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 3_000_000}))
        with pytest.raises(files.DiskFullError, match=r"unexpected pos 64.*has 3 MB left"), files.whole(tmp_path / "a"):
            raise RuntimeError("unexpected pos 64 vs 0")

    @pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "Permission denied"), ValueError("not yours")])
    def test_errors_with_a_meaning_of_their_own_stay_on_a_full_disk_too(self, tmp_path, monkeypatch, error):
        monkeypatch.setattr(files.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 3_000_000}))
        with pytest.raises(type(error), match="denied|yours"), files.whole(tmp_path / "a"):
            raise error

    def test_other_errors_stay_as_they_are_where_there_is_room(self, tmp_path):
        with pytest.raises(RuntimeError, match="^mine$"), files.whole(tmp_path / "a"):
            raise RuntimeError("mine")

    def test_it_is_named_once(self, tmp_path):
        with (
            pytest.raises(files.DiskFullError, match=rf"^{tmp_path}/inner cannot"),
            files.naming_full_disk(tmp_path / "outer"),
            files.naming_full_disk(tmp_path / "inner"),
        ):
            raise OSError(errno.EDQUOT, "quota")


class TestSweep:
    def test_a_dead_process_leaves_nothing(self, tmp_path):
        code = f"""
            import os
            from nnunet_ext import files
            with files.whole({str(tmp_path / "a.json")!r}) as temporary, files.whole_files({str(tmp_path)!r}) as folder:
                temporary.write_text("half")
                (folder / "b").write_text("half")
                os._exit(9)
        """
        subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
        assert len(names(tmp_path)) == 2
        assert len(files.sweep(tmp_path)) == 2
        assert names(tmp_path) == []

    def test_who_is_alive_keeps_theirs(self, tmp_path):
        with files.whole(tmp_path / "a") as temporary:
            temporary.write_text("half")
            assert files.sweep(tmp_path) == []
            assert temporary.exists()

    def test_a_number_that_was_given_to_another_process_does_not_protect(self, tmp_path, monkeypatch):
        left = tmp_path / files._partial_name("a")
        left.write_text("half")
        began = type("Process", (), {"create_time": lambda _: left.stat().st_ctime + 2 * 24 * 3600})
        monkeypatch.setattr(files.psutil, "Process", lambda _: began())
        assert files.sweep(tmp_path) == [left]

    def test_old_times_of_what_is_copied_do_not_matter(self, tmp_path):
        with files.whole(tmp_path / "a") as temporary:
            temporary.write_text("half")
            os.utime(temporary, (1e9, 1e9))  # as copies have it
            assert files.sweep(tmp_path) == []

    def test_other_machines_are_given_a_day(self, tmp_path):
        other = tmp_path / f"{files.PREFIX}0123456789_1_0_a"
        other.write_text("")
        assert files.sweep(tmp_path) == []
        os.utime(other, (1e9, 1e9))
        assert files.sweep(tmp_path) == [other]

    def test_what_is_only_named_alike_stays(self, tmp_path):
        (tmp_path / ".partial_notes").write_text("of the user")
        (tmp_path / ".partial_download").mkdir()
        for path in tmp_path.iterdir():
            os.utime(path, (1e9, 1e9))
        assert files.sweep(tmp_path) == []

    def test_no_folder_is_nothing_to_do(self, tmp_path):
        assert files.sweep(tmp_path / "none") == []


class TestJson:
    def test_what_is_written_is_read(self, tmp_path):
        files.write_json(tmp_path / "a.json", {"a": [1, 2.5, None]})
        assert files.read_json(tmp_path / "a.json") == {"a": [1, 2.5, None]}

    def test_damage_is_named_with_its_place_and_what_to_do(self, tmp_path):
        (tmp_path / "a.json").write_text('{"a": 1,\n "b": }')
        with pytest.raises(ValueError, match=r"a\.json is no JSON \(line 2, column 7: Expecting value\); plan again"):
            files.read_json(tmp_path / "a.json", "plan again")

    def test_other_bytes_are_named(self, tmp_path):
        (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ValueError, match=r"a\.json is no JSON \(not UTF-8 text\)"):
            files.read_json(tmp_path / "a.json")

    def test_another_kind_is_named(self, tmp_path):
        (tmp_path / "a.json").write_text('{"a": 1}')
        with pytest.raises(ValueError, match=r"a\.json holds \{'a': 1\}, expected a list"):
            files.read_json(tmp_path / "a.json", kind=list)

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"a\.json is missing; plan first"):
            files.read_json(tmp_path / "a.json", "plan first")


def _hold(folder, ready, end):
    with files.only_here(folder, "preprocessed"):
        ready.set()
        end.wait(60)


class TestOnlyHere:
    def test_the_other_process_is_named(self, tmp_path):
        context = get_context("spawn")
        ready, end = context.Event(), context.Event()
        process = context.Process(target=_hold, args=(tmp_path / "data", ready, end))
        process.start()
        try:
            assert ready.wait(60)
            expected = rf"data is being preprocessed by process {process.pid} on \S+ since .*; wait until it is done"
            with pytest.raises(files.BusyError, match=expected), files.only_here(tmp_path / "data", "preprocessed"):
                pass
        finally:
            process.kill()
            process.join()
        with files.only_here(tmp_path / "data", "preprocessed"):  # a killed one holds nothing
            held = json.loads((tmp_path / ".data.lock.json").read_text())
        assert held["pid"] == os.getpid()


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), PermissionError(13, "denied")])
def test_without_locks_the_work_goes_on_with_a_warning(tmp_path, monkeypatch, error):
    import filelock

    def acquire(self):
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    done = []
    with pytest.warns(UserWarning, match="data cannot be locked"), files.only_here(tmp_path / "data", "preprocessed"):
        done.append(True)
    assert done


class TestCleared:
    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "old").write_text("old")
        return tmp_path / "data"

    def test_what_it_held_is_gone_once_there_is_something_new(self, folder):
        with files.cleared(folder) as drop_old:
            assert names(folder) == []
            (folder / "new").write_text("new")
            drop_old()
            drop_old()
        assert names(folder) == ["new"]
        assert names(folder.parent) == ["data"]

    def test_without_anything_new_it_is_as_before(self, folder):
        with files.cleared(folder):
            (folder / "half").write_text("half")
        assert names(folder) == ["old"]

    def test_where_the_block_fails_it_is_as_before(self, folder):
        def fail():
            with files.cleared(folder):
                raise OSError("the disk went away")

        with pytest.raises(OSError, match="went away"):
            fail()
        assert names(folder) == ["old"]

    def test_after_a_kill_the_next_run_has_it_back(self, folder):
        os.replace(folder, folder.with_name(".data.before"))
        folder.mkdir()
        (folder / "half").write_text("half")
        with files.cleared(folder):
            pass
        assert names(folder) == ["old"]

    def test_a_folder_that_is_not_there_is_made(self, tmp_path):
        with files.cleared(tmp_path / "new" / "data"):
            assert names(tmp_path / "new" / "data") == []
        assert names(tmp_path / "new") == ["data"]

    @pytest.mark.parametrize("killed", [False, True])
    def test_what_cannot_be_deleted_does_not_come_back(self, folder, monkeypatch, killed):
        """Deleting takes time and can fail half-way; the new content stays."""

        def rmtree(path, ignore_errors=False):
            if killed:
                raise KeyboardInterrupt

        monkeypatch.setattr(files.shutil, "rmtree", rmtree)

        def fill():
            with files.cleared(folder) as drop_old:
                (folder / "new").write_text("new")
                drop_old()

        if killed:
            with pytest.raises(KeyboardInterrupt):
                fill()
        else:
            fill()
        monkeypatch.undo()
        assert names(folder) == ["new"]
        with files.cleared(folder):
            pass
        assert names(folder) == ["new"]

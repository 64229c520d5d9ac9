"""Looks at real directories, and at mounts as /proc tells them."""

from __future__ import annotations

from pathlib import Path

from hpcserve.doctor.storage import kind_of, look_at_model, look_at_scratch, look_at_state


def test_a_good_directory_is_written_locked_and_left_as_it_was(tmp_path: Path) -> None:
    found = look_at_state(tmp_path / "state")
    assert (found["state_error"], found["lock_error"]) == ("", "")
    assert found["state_free"] > 0
    assert list((tmp_path / "state").iterdir()) == []


def test_a_directory_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert look_at_state(tmp_path / "file" / "state")["state_error"] == "Not a directory"
    assert look_at_scratch(str(tmp_path / "gone"))["scratch_error"] == "No such file or directory"


def test_a_model_is_read_and_its_weights_are_added_up(tmp_path: Path) -> None:
    for name, length in (("config.json", 2), ("tokenizer.json", 2), ("a.safetensors", 1000), ("b.safetensors", 500)):
        (tmp_path / name).write_bytes(b"0" * length)
    assert (look_at_model(tmp_path)["model_error"], look_at_model(tmp_path)["model_bytes"]) == ("", 1500)
    (tmp_path / "tokenizer.json").unlink()
    assert look_at_model(tmp_path)["model_error"] == "no tokenizer.json in it"
    assert look_at_model(tmp_path / "gone")["model_error"].startswith("No such file or directory")
    assert look_at_model(None)["model_error"] == ""


def test_the_kind_of_file_system_is_that_of_the_deepest_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda / ext4 rw 0 0\nnas:/home /home nfs4 rw 0 0\n"
        "lustre /home/big\\040one lustre rw 0 0\nx /hom xfs rw 0 0\n"
    )
    kinds = [kind_of(Path(path), str(mounts)) for path in ("/home/u/state", "/home/big one/x", "/etc", "/homework")]
    assert kinds == ["nfs4", "lustre", "ext4", "ext4"]
    assert kind_of(Path("/home"), str(tmp_path / "gone")) == ""

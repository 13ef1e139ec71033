from vidlab.lab.cli.unused_folder import remove_unused


def test_a_folder_in_which_nothing_came_to_be_is_removed_and_one_with_notes_stays(tmp_path):
    for name, kept in (("empty", False), ("used", True)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "multirun.yaml").write_text("")
        if kept:
            (folder / "notes.txt").write_text("mine")
        remove_unused(folder)
        assert folder.exists() == kept

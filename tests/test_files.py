import pytest

from alignseg_tf.files import atomic_path, write_text


def test_a_file_is_replaced_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "x.txt"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "x.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        assert temporary.suffix == ".txt"
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_replaced_as_a_whole(tmp_path):
    path = tmp_path / "model"
    for content in ("a", "b"):
        with atomic_path(path) as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.mkdir()
        raise RuntimeError
    assert [p.name for p in path.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [path]

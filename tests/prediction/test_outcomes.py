import csv
from pathlib import Path

from alignseg_tf.prediction.outcomes import COLUMNS, Outcome, OutcomeLog, relative_names


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def written(name, sha256, *kinds):
    return Outcome(
        f"{name}.png", "written", files=tuple(f"{name}_{k}" for k in kinds), sha256=sha256
    )


def test_a_log_knows_to_which_image_a_result_belongs(tmp_path):
    path = tmp_path / "log.csv"
    with OutcomeLog(path) as log:
        log.add(written("a b", "first", "classes", "overlay"))
        log.add(written("c", "second", "classes"))
    with OutcomeLog(path) as log:
        assert log.belong(["a b_classes", "a b_overlay"], "first")
        assert not log.belong(["a b_classes"], "second") and not log.belong(["d"], "first")
        log.add(written("a b", "third", "classes"))
    log = OutcomeLog(path)
    assert log.belong(["a b_classes"], "third") and log.belong(["a b_overlay"], "first")
    assert log.knows("c_classes") and not log.knows("c_overlay")
    # A row stays for as long as it has a result.
    assert [(row["sha256"], row["files"]) for row in rows(path)] == [
        ("first", "'a b_overlay'"), ("second", "c_classes"), ("third", "'a b_classes'"),
    ]  # fmt: skip


def test_a_killed_run_leaves_what_is_true(tmp_path):
    """Each row is on the disk at once; half a row, and results that were begun, are nobody's."""
    path = tmp_path / "log.csv"
    with OutcomeLog(path) as log:
        log.add(written("a", "first", "classes"))
        log.add(written("b", "second", "classes"))
        log.begin(written("a", "third", "classes"))
        killed = path.read_text() + '"c.png,written,"'
    path.write_text(killed)
    with OutcomeLog(path) as log:
        assert log.belong(["b_classes"], "second")
        assert not log.belong(["a_classes"], "first") and not log.belong(["a_classes"], "third")
        assert log.knows("a_classes")
        log.add(written("a", "first", "classes").skipped("no"))
    assert [(row["source"], row["outcome"], row["files"]) for row in rows(path)] == [
        ("b.png", "written", "b_classes"),
        ("a.png", "outdated", "a_classes"),
        ("a.png", "skipped", ""),
    ]


def test_equal_images_of_a_run_share_a_result(tmp_path):
    path = tmp_path / "log.csv"
    with OutcomeLog(path) as log:
        log.add(written("=z", "other", "classes"))
    with OutcomeLog(path) as log:
        log.add(Outcome("a.png", "written", files=("r s",), sha256="same"))
        log.add(Outcome("b.png", "kept", files=("r s",), sha256="same"))
    assert [(row["source"], row["files"]) for row in rows(path)] == [
        ("'=z.png", "'=z_classes'"), ("a.png", "'r s'"), ("b.png", "'r s'"),
    ]  # fmt: skip


def test_all_is_outdated_at_once(tmp_path):
    path = tmp_path / "log.csv"
    with OutcomeLog(path) as log:
        log.add(written("a", "first", "classes"))
    log = OutcomeLog(path)
    log.outdate(["theirs"])
    with log:
        assert log.knows("a_classes") and log.knows("theirs")
        assert not log.belong(["a_classes"], "first")
        assert not OutcomeLog(path).belong(["a_classes"], "first")


def test_files_of_other_programs_are_no_log(tmp_path):
    path = tmp_path / "log.csv"
    for text in ("", "a,b\n1,2\n", "\0\xff", ",".join(COLUMNS) + "\nx,y\n"):
        path.write_text(text)
        assert not OutcomeLog(path).knows("2")


def test_cells(tmp_path):
    outcome = Outcome("a\x1b\udcff", "written", 4, 5, seconds=1 / 3, message="two\nlines")
    path = tmp_path / "log.csv"
    with OutcomeLog(path) as log:
        log.add(outcome)
        log.add(Outcome("=1.png", "written", files=("=1_classes.png", "b c.png")))
    first, second = rows(path)
    assert (first["source"], first["message"]) == (r"a\x1b\xff", r"two\nlines")
    assert (first["height"], first["seconds"], first["in_windows"]) == ("4", "0.333", "False")
    assert (second["source"], second["files"]) == ("'=1.png", "'=1_classes.png' 'b c.png'")
    assert OutcomeLog(path).knows("=1_classes.png")
    assert outcome.skipped("no") == Outcome(
        "a\x1b\udcff", "skipped", 4, 5, seconds=1 / 3, message="no"
    )
    assert relative_names([Path("o/x/a\udcff_1.png")], Path("o")) == (r"x/a\xff_1.png",)


def test_report(tmp_path, capsys):
    with OutcomeLog(tmp_path / "log.csv") as log:
        for _ in range(3):
            log.add(written("a", "first", "classes"))
        assert log.report(61) == 0
        log.add(Outcome("b", "skipped"))
    assert log.report(61) == 1
    printed = capsys.readouterr()
    assert "4 in 1:01 (0.05 written/s): 3 written, 1 skipped; see " in printed.out
    assert printed.err == "error: 1 of 4 were skipped\n"

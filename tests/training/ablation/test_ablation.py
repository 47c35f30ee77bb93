"""The ablation: what it trains, what it keeps, and what it makes of it."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from conftest import CLASSES, ROOT

from alignseg_tf.data.sources import open_data
from alignseg_tf.evaluation.counts import score_image
from alignseg_tf.evaluation.report import Report
from alignseg_tf.system.files import RECORD_FILE
from training.ablation import __main__ as ablation
from training.ablation.__main__ import planned
from training.ablation.report import GridScores, ablation_csv, ablation_tables, draw_ablation
from training.ablation.results import (
    CELLS,
    Cell,
    read_results,
    result_file,
    write_result,
)
from training.callbacks.run_folder import describe_run
from training.recipe import Recipe, RecipeError

IMAGES = 8


def scores_of(wrong, seed=0):
    """Images of which a share of the pixels is wrong."""
    rng = np.random.default_rng(seed)
    scores = []
    for number in range(IMAGES):
        truth = np.repeat(np.arange(3, dtype=np.uint8), 40).reshape(10, 12)
        found = np.where(rng.random(truth.shape) < wrong, (truth + 1) % 3, truth).astype(np.uint8)
        scores.append(score_image(f"{number}.png", truth, found, 3))
    return scores


def result_of(recipe, wrong, seed=0):
    return {
        "recipe": dataclasses.asdict(recipe),
        "data": {"training_samples": 6},
        "classes": list(CLASSES),
        "parameters": 3_960_000,
        "macs": 2_500_000_000,
        "macs_size": (360, 480),
        # Epochs of one step: one alone, one with a validation, one beside other work.
        "metrics": ["epoch,seconds,val_mean_iou", "0,0.25,", "1,0.1,0.5", "2,0.75,"],
        "machine": {"cpu": "Abacus", "cores": 2, "gpus": []},
        "versions": {},
        "scores": [score.to_dict() for score in scores_of(wrong, seed)],
    }


@pytest.fixture
def results(tmp_path):
    """Of the four main cells with three seeds and of another with one."""
    for cell, seed in planned(3, 0):
        wrong = 0.3 - 0.1 * (cell.aggregation == "align") - 0.02 * (cell.context == "align")
        recipe = Recipe(aggregation=cell.aggregation, context=cell.context, seed=seed)
        path = result_file(tmp_path / "results", cell, seed)
        write_result(path, result_of(recipe, wrong + 0.01 * seed, seed))
    return tmp_path / "results"


def test_the_plan_is_the_grid_and_goes_seed_by_seed():
    plan = list(planned(3, 1))
    assert len(plan) == len(set(plan)) == 4 * 3 + 4
    assert [seed for _, seed in plan] == [0] * 8 + [1] * 4 + [2] * 4
    some = [CELLS[0], CELLS[-1]]
    assert list(planned(2, 1, some)) == [(some[0], 0), (some[1], 0), (some[0], 1)]


def test_what_is_done_is_not_done_again(folder, tmp_path, monkeypatch, capsys):
    trained = []
    data, kept = open_data(folder), tmp_path / "results"
    run = describe_run(Recipe(), data, data.samples("train"))
    described = {key: run[key] for key in run.keys() - dataclasses.asdict(Recipe()).keys()}
    names = [sample.image.name for sample in data.samples("val")]

    def run_cell(recipe, data, folder):
        trained.append((folder.name, recipe.aggregation, recipe.context, recipe.seed))
        if len(trained) == 3:
            raise KeyboardInterrupt
        result = result_of(recipe, 0.2) | {"data": described}
        pairs = zip(result["scores"], names, strict=False)
        return result | {"scores": [score | {"name": name} for score, name in pairs]}

    def ablate(epochs):
        ablation.ablate(Recipe(epochs=epochs), data, tmp_path, kept, list(planned(1, 0)))

    monkeypatch.setattr(ablation, "run_cell", run_cell)
    with pytest.raises(KeyboardInterrupt):
        ablate(3)
    assert len(list(kept.iterdir())) == 2
    ablate(3)
    assert trained == [
        ("bilinear-none-0", "bilinear", "none", 0),
        ("align-none-0", "align", "none", 0),
        ("bilinear-align-0", "bilinear", "align", 0),
        ("bilinear-align-0", "bilinear", "align", 0),
        ("align-align-0", "align", "align", 0),
    ]
    assert "[2/4] align-none, seed 0: done before" in capsys.readouterr().out
    with pytest.raises(RecipeError, match="(?s)none-0.json.gz .*this .*epochs: 4 there, 3 here"):
        ablate(4)
    assert len(trained) == 5
    (kept / "align-none-0.json.gz").write_bytes(b"half")
    with pytest.raises(RecipeError, match="align-none-0.json.gz: not a result of an ablation"):
        read_results(kept)


@pytest.mark.parametrize(
    ("data", "scores", "message"),
    [
        ({"training_samples": 7}, 1, "training_samples: 6 there, 7 here"),
        ({"training_samples": 6}, -1, "validation_image_names: "),
        # Older results do not tell the content of files, and go with all others.
        ({"training_samples": 6, "training_labels": "two"}, 1, "training_labels: 'one' there"),
    ],
)
def test_results_of_other_data_are_refused(results, data, scores, message):
    one = result_of(Recipe(aggregation="align_coarse"), 0.2)
    one["data"] = {"training_samples": 6, "training_labels": "one"}
    write_result(result_file(results, Cell("align_coarse", "align"), 0), one)
    assert "align_coarse-align" in read_results(results)
    other = result_of(Recipe(aggregation="align_fine"), 0.2) | {"data": data}
    other["scores"] = other["scores"][::scores]
    write_result(result_file(results, Cell("align_fine", "align"), 0), other)
    with pytest.raises(RecipeError, match=f"(?s)align_fine.*{message}"):
        read_results(results)


def test_a_class_may_be_called_as_another_column(results, tmp_path):
    found = read_results(results)
    for result in (one for of_cell in found.values() for one in of_cell):
        result["classes"] = ["seed", *CLASSES[1:]]
    head = ablation_csv(found).splitlines()[0].split(",")
    assert len(set(head)) == len(head)
    assert head[-3:] == ["seed (class)", *CLASSES[1:]]


def test_results_from_before_an_option_had_its_default(results):
    older = result_of(Recipe(aggregation="align_fine"), 0.2)
    del older["recipe"]["train_on"]
    write_result(result_file(results, Cell("align_fine", "align"), 0), older)
    assert len(read_results(results)["align_fine-align"]) == 1


def test_a_cell_is_the_mean_of_its_seeds(results):
    found = read_results(results)
    assert list(found) == ["bilinear-none", "align-none", "bilinear-align", "align-align"]
    iou = [Report(CLASSES, scores_of(0.2 + 0.01 * seed, seed)).mean_iou for seed in range(3)]
    scores = GridScores(found)
    np.testing.assert_allclose(scores.values("align-none", "mean_iou"), iou)
    assert scores.of_cell("align-none", "mean_iou").value == pytest.approx(np.mean(iou))


def test_a_difference_is_over_the_seeds_that_both_have(results):
    found = read_results(results)
    del found["align-align"][1:]
    scores = GridScores(found)
    value = scores.difference("align-align", "bilinear-align", "mean_iou")
    one, other = (scores.values(name, "mean_iou")[0] for name in ("align-align", "bilinear-align"))
    assert value.value == pytest.approx(one - other)
    assert value.seeds == 1
    assert value.low < value.value < value.high  # the other cells tell how seeds differ
    del found["bilinear-align"][0]
    assert GridScores(found).difference("align-align", "bilinear-align", "mean_iou") is None
    for of_cell in found.values():
        del of_cell[1:]
    assert np.isnan(GridScores(found).of_cell("align-none", "mean_iou").low)
    assert "(" not in ablation_tables(found)  # with one seed each there are no intervals


@pytest.mark.parametrize("counts", [(3, 3, 3, 3), (2, 2, 2, 1)])
def test_intervals_cover_what_seeds_do(counts):
    """Equal cells whose images are all alike: in 95 % of ablations the truth is inside.

    A seed adds something to all cells, and something to each.
    """
    rng = np.random.default_rng(0)
    of_difference, of_cell = [], []
    for _ in range(300):
        shared = rng.normal(size=3)
        results = {
            name: [
                {"recipe": {"seed": seed}, "report": AlikeReport(shared[seed] + rng.normal())}
                for seed in range(count)
            ]
            for name, count in zip("abcd", counts, strict=True)
        }
        found = GridScores(results).difference("d", "a", "mean_iou")
        of_difference.append(found.low < 0 < found.high)
        # A seed's part that all cells share makes cells alike, and the variance less well known.
        found = GridScores({"a": results["a"]}).of_cell("a", "mean_iou")
        of_cell.append(found.low < 0 < found.high)
    assert 0.92 < np.mean(of_difference) < 0.98
    assert 0.92 < np.mean(of_cell) < 0.98


def test_what_a_seed_adds_to_all_cells_is_no_part_of_a_difference():
    results = {
        name: [
            {"recipe": {"seed": seed}, "report": AlikeReport(10 * seed + gain + 0.01 * (seed == 1))}
            for seed in range(3)
        ]
        for name, gain in (("a", 0.0), ("b", 1.0))
    }
    results["a"][1]["report"] = AlikeReport(10.0)
    scores = GridScores(results)
    found = scores.difference("b", "a", "mean_iou")
    assert found.value == pytest.approx(1.0, abs=0.01)
    assert 0.9 < found.low < found.high < 1.1
    wide = scores.of_cell("b", "mean_iou")
    assert wide.high - wide.low > 10


class AlikeReport:
    """A report on images that all have the same mean IoU."""

    def __init__(self, mean_iou):
        self.resampled = self
        self.mean_iou = np.full((), mean_iou)


def test_seconds_of_different_machines_are_not_mixed(results):
    found = read_results(results)
    for of_cell in list(found.values())[:3]:
        of_cell[0]["machine"]["cpu"] = "Slide rule"
        of_cell[0]["metrics"] = ["epoch,seconds,val_mean_iou", "0,9.0,"]
    table = ablation_tables(found)
    assert "| s a step, 2 cores of Abacus |" in table.splitlines()[0]
    assert table.count("| 2.50 | 0.25 |") == 4
    for of_cell in list(found.values())[:3]:
        del of_cell[1:]
    found["align-align"][0]["machine"]["cpu_model"] = "another with the same name"
    assert [row.split("|")[-2].strip() for row in ablation_tables(found).splitlines()[2:6]] == [
        "9.00", "9.00", "9.00", ""
    ]  # fmt: skip
    found["align-align"][0]["machine"]["gpus"] = ["GPU"]
    head, *rows = ablation_tables(found).splitlines()
    assert "| s a step, 2 cores of Slide rule |" in head
    assert [row.split("|")[-2].strip() for row in rows[1:5]] == ["9.00", "9.00", "9.00", ""]


def test_tables_say_by_how_much_and_how_sure(results, tmp_path):
    found = read_results(results)
    tables = ablation_tables(found)
    scores = GridScores(found)
    mean = [scores.of_cell(name, "mean_iou").value for name in ("bilinear-none", "align-none")]
    assert f"| `align` | `none` | 3 | {100 * mean[1]:.2f} |" in tables
    assert "| 3.96 | 2.50 | 0.25 |" in tables
    gain = f"{100 * (mean[1] - mean[0]):+.2f}"
    assert f"| AlignFA, no context | 3 | {gain}* (+" in tables
    assert "pooled context" not in tables  # those cells are not there
    assert all(f"| {name} | " in tables for name in CLASSES)
    same = scores.difference("align-none", "align-none", "mean_iou")
    assert same.value == 0
    assert same.low < 0 < same.high  # other seeds would differ

    ablation.write_outcome(tmp_path, results)
    rows = list(
        csv.DictReader((tmp_path / "ablation.csv").read_text(encoding="utf-8").splitlines())
    )
    assert len(rows) == 12
    assert float(rows[3]["mean_iou"]) == pytest.approx(found["align-none"][0]["report"].mean_iou)
    assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")
    draw_ablation({"align-none": found["align-none"][:1]}, tmp_path / "one.png")
    (tmp_path / RECORD_FILE).unlink()  # as an older version leaves it
    ablation.write_outcome(tmp_path, results)
    (tmp_path / "ablation.md").write_text("with my notes")
    with pytest.raises(ValueError, match=r"ablation\.md \(changed since\)"):
        ablation.write_outcome(tmp_path, results)
    assert (tmp_path / "ablation.md").read_text() == "with my notes"
    ablation.write_outcome(tmp_path, results, overwrite=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--aggregation align", "--aggregation is decided by the cells"),
        ("--validate-every 1", "--validate-every is decided by"),
        ("--block 0", "must be at least 1. Received: 0"),
        ("--seeds 0", "--seeds must be at least 1"),
        ("--epochs 0", "epochs must be positive"),
        ("--data gone", "gone: no such file or folder"),
    ],
)
def test_bad_options_are_named(options, message, folder, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["--data", str(folder), "--output", str(output), *options.split()]
    assert ablation.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.slow
def test_two_cells_are_trained_and_compared(folder, tmp_path, monkeypatch, capsys):
    cells = (Cell("bilinear", "none", main=True), Cell("align", "none", main=True))
    monkeypatch.setattr(ablation, "CELLS", cells)
    arguments = [
        "--data", str(folder), "--output", str(tmp_path / "out"), "--seeds", "1",
        "--results", str(tmp_path / "kept"), "--epochs", "2", "--warmup-epochs", "0",
        "--batch-size", "2", "--crop-size", "64", "64", "--channels", "8",
    ]  # fmt: skip
    assert ablation.main(arguments) == 0
    output = capsys.readouterr().out
    assert "[2/2] align-none, seed 0, about" in output
    assert "| AlignFA, no context | " in output
    found = read_results(tmp_path / "kept")
    costs = {name: (one[0]["parameters"], one[0]["macs"]) for name, one in found.items()}
    assert costs["align-none"] > costs["bilinear-none"]
    report = found["align-none"][0]["report"]
    evaluated = json.loads((tmp_path / "out" / "align-none-0" / "evaluation.json").read_text())
    assert report.mean_iou == evaluated["mean_iou"]
    assert len(found["align-none"][0]["metrics"]) == 3


@pytest.mark.parametrize(("results", "block"), [("ablation", 10), ("ablation_nuclei", 1)])
def test_the_page_has_the_tables_of_the_results(results, block):
    tables = ablation_tables(read_results(ROOT / "docs" / "runs" / results, block))
    assert tables in (ROOT / "docs" / "ablation.md").read_text(encoding="utf-8")

"""What a run records, and the ways in which it may end."""

import csv
import errno
import os
import signal
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import CLASSES, tiny_model
from keras import ops

from alignseg_tf import AlignSeg, losses, metrics, optimizers
from alignseg_tf.precision import global_dtype_policy
from training.build import for_inference
from training.callbacks import logs as training_logs
from training.callbacks import run_folder as callbacks
from training.callbacks.averaging import ValidateAveraged, averaged
from training.callbacks.progress import Progress
from training.callbacks.run_folder import RunFolder, load_resumable, locked, save_resumable
from training.callbacks.stopping import RunStoppedError, StopOnNonFinite, StopOnSignal
from training.recipe import RecipeError

VALIDATED = {"loss": 1.5, "segmentation_mean_iou": 0.2, "val_segmentation_mean_iou": 0.5}


@pytest.fixture(scope="module")
def segmenter() -> keras.Model:
    """A model that has counted: the ground is right for a third, the box never, the disc absent."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, {"segmentation": keras.layers.Conv2D(3, 1)(inputs)})
    metric = metrics.MeanIoU(3, class_names=CLASSES)
    loss = losses.CrossEntropy(255)
    model.compile(
        optimizers.AdamW(1e-3), {"segmentation": loss}, metrics={"segmentation": [metric]}
    )
    label = np.zeros((1, 1, 3), "int32")
    model.train_on_batch(np.ones((1, 1, 3, 3), "float32"), {"segmentation": label})
    metric.reset_state()
    metric.update_state(np.array([[[0, 0, 1]]]), np.array([[[0, 1, 0]]]))
    return model


@pytest.fixture
def run_folder(segmenter, tmp_path, monkeypatch):
    monkeypatch.setattr("training.callbacks.run_folder.for_inference", keras.models.clone_model)
    folder = RunFolder(tmp_path)
    folder.set_model(segmenter)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_records_of_lost_epochs_are_written_again(run_folder):
    run_folder.on_epoch_end(0, VALIDATED)
    run_folder.on_epoch_end(1, {"loss": 1.0, "segmentation_mean_iou": 0.3})
    assert [row["epoch"] for row in rows(run_folder.iou_file)] == ["0"]
    assert rows(run_folder.iou_file)[0] == {
        "epoch": "0", "ground": "0.333333", "box": "0", "disc": "",
    }  # fmt: skip
    run_folder.on_epoch_end(2, VALIDATED)
    # Killed before the third epoch was saved in last.keras: it is done again.
    again = RunFolder(run_folder.folder)
    again.set_model(run_folder.model)
    again.on_epoch_end(1, VALIDATED | {"loss": 0.5})
    assert [row["epoch"] for row in rows(run_folder.metrics_file)] == ["0", "1"]
    assert [row["epoch"] for row in rows(run_folder.iou_file)] == ["0", "1"]
    assert [row["loss"] for row in rows(run_folder.metrics_file)] == ["1.5", "0.5"]
    assert load_resumable(run_folder.last_file)[1] == 2


def test_a_class_may_be_called_as_the_column_of_epochs(run_folder, monkeypatch):
    monkeypatch.setattr(callbacks, "class_iou", lambda model: {"epoch": 0.25, "other": 0.5})
    for epoch in range(2):
        run_folder.on_epoch_end(epoch, VALIDATED)
    assert rows(run_folder.iou_file) == [
        {"epoch": str(epoch), "epoch (class)": "0.25", "other": "0.5"} for epoch in range(2)
    ]
    run_folder.iou_file.write_text("epoch,other\n0.25,0.5\n")
    with pytest.raises(RunStoppedError, match=r"iou\.csv: expected a column epoch"):
        run_folder.on_epoch_end(2, VALIDATED)


def test_a_folder_is_for_one_training_at_a_time(tmp_path):
    folder = tmp_path / "run"
    held = f"process {os.getpid()} on "
    with pytest.raises(KeyError), locked(folder):
        for _ in range(2):  # the first one has it still
            with pytest.raises(RecipeError, match=f"another training, {held}"), locked(folder):
                pytest.fail("two trainings in one folder")
        raise KeyError
    assert not folder.exists(), "nothing was written"
    with locked(folder):
        (folder / "run.json").write_text("{}")
    assert [path.name for path in folder.iterdir()] == ["run.json"]
    (folder / callbacks.LOCK_FILE).write_text("process 1 on here, which was killed")
    with locked(folder):
        assert (folder / callbacks.LOCK_FILE).read_text().startswith(held)


def test_a_file_system_without_locks_is_said_and_trains(tmp_path, monkeypatch, capsys):
    def fail(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(callbacks.fcntl, "flock", fail)
    with locked(tmp_path):
        assert "cannot be locked (No locks available)" in capsys.readouterr().out


def test_the_best_model_is_replaced_by_a_better_one_only(run_folder):
    worse, better = ({**VALIDATED, "val_segmentation_mean_iou": x} for x in (0.4, 0.6))
    run_folder.on_epoch_end(0, VALIDATED)
    first = run_folder.best_file.read_bytes()
    run_folder.on_epoch_end(1, worse)
    assert run_folder.best_file.read_bytes() == first
    weight = run_folder.model.trainable_weights[0]
    weight.assign(weight + 1.0)
    run_folder.on_epoch_end(2, better)
    assert run_folder.best_file.read_bytes() != first


def test_weights_that_are_not_finite_are_never_saved(run_folder, segmenter):
    run_folder.on_epoch_end(0, VALIDATED)
    before = contents(run_folder.folder)
    assert {"last.keras", "best.keras", "metrics.csv", "iou.csv"} == before.keys()
    for variable in (segmenter.trainable_weights[0], segmenter.optimizer.variables[-1]):
        value = variable.numpy()
        variable.assign(np.full(value.shape, np.inf))
        with pytest.raises(RunStoppedError, match="epoch 2: 1 weights are not finite"):
            run_folder.on_epoch_end(1, VALIDATED | {"val_segmentation_mean_iou": 0.9})
        variable.assign(value)
    assert contents(run_folder.folder) == before


@pytest.mark.parametrize("failing_at", ["metrics", "best", "last", "epochs_done"])
def test_a_failure_at_any_moment_leaves_the_last_checkpoint_whole(
    run_folder, monkeypatch, failing_at
):
    """The disk fills up half-way through each of the files."""
    run_folder.on_epoch_end(0, VALIDATED)
    before = contents(run_folder.folder)

    def failing(write):
        def wrapped(*arguments):
            paths = [Path(x) for x in arguments if isinstance(x, str | Path)]
            if not any(failing_at in path.name for path in paths):
                return write(*arguments)
            for path in paths:
                if path.is_absolute():
                    with path.open("wb") as file:
                        file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return wrapped

    better = VALIDATED | {"val_segmentation_mean_iou": 0.9}
    with monkeypatch.context() as patch:
        for owner, name in (
            (keras.Model, "save"), (Path, "write_bytes"), (zipfile.ZipFile, "writestr")
        ):  # fmt: skip
            patch.setattr(owner, name, failing(getattr(owner, name)))
        with pytest.raises(OSError):
            run_folder.on_epoch_end(1, better)
    after = contents(run_folder.folder)
    assert after.keys() == before.keys()
    names = ["metrics.csv", "iou.csv", "best.keras", "last.keras"]
    place = next((i for i, name in enumerate(names) if failing_at in name), 3)
    for name in names[place:]:
        assert after[name] == before[name], name
    run_folder.on_epoch_end(1, better)
    assert load_resumable(run_folder.last_file)[1] == 2


def test_best_is_float32_and_averaged():
    with global_dtype_policy("mixed_bfloat16"):
        model = tiny_model()
        model.compile(optimizers.AdamW(1e-3, use_ema=True))
        model.optimizer.build(model.trainable_variables)
        copy = for_inference(model)
    assert {layer.compute_dtype for layer in model._flatten_layers()} >= {"bfloat16"}
    for changed in (copy, AlignSeg.from_config(copy.get_config())):
        assert {layer.compute_dtype for layer in changed._flatten_layers()} == {"float32"}
    average = model.optimizer._model_variables_moving_average[0]
    expected = average.numpy() + 1.0
    average.assign(expected)
    trained = model.get_weights()
    place = [weight.path for weight in model.weights].index(model.trainable_variables[0].path)
    np.testing.assert_array_equal(for_inference(model).get_weights()[place], expected)
    with averaged(model):
        np.testing.assert_array_equal(model.get_weights()[place], expected)
    for old, new in zip(trained, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def regression(optimizer=None, loss="mse") -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(optimizer or optimizers.AdamW(0.01), loss)
    return model


def numbers(poison: float | None = None, epoch: int = 0, step: int = 0) -> list:
    """Four batches for each of three epochs, one of them spoilt."""
    rng = np.random.default_rng(0)
    batches = [
        (rng.uniform(1, 2, (2, 3)).astype("float32"), np.zeros((2, 1), "float32"))
        for _ in range(12)
    ]
    if poison is not None:
        batches[4 * epoch + step][0][:] = poison
    return batches


def fit(model, batches, callbacks, initial_epoch=0, epochs=3, **kwargs):
    dataset = tf.data.Dataset.from_generator(
        lambda: iter(batches[4 * initial_epoch :]),
        output_signature=(tf.TensorSpec((2, 3)), tf.TensorSpec((2, 1))),
    )
    return model.fit(
        dataset, initial_epoch=initial_epoch, epochs=epochs, steps_per_epoch=4, verbose=0,
        callbacks=callbacks, shuffle=False, **kwargs,
    )  # fmt: skip


def test_averages_are_validated_and_survive_a_resume(tmp_path):
    """Weights, averages and results of an unbroken run and of one that was saved and loaded."""
    seen = []

    class See(keras.callbacks.Callback):
        def on_test_batch_end(self, batch, logs=None):
            seen.append(self.model.get_weights()[0])

        def on_epoch_end(self, epoch, logs=None):
            save_resumable(self.model, tmp_path / f"{epoch}.keras", epoch + 1)

    def optimizer():
        return optimizers.AdamW(0.1, use_ema=True, ema_momentum=0.5)

    batches, callbacks = numbers(), [ValidateAveraged(), See()]
    validation = {"validation_data": batches[0]}
    unbroken = regression(optimizer())
    whole = fit(unbroken, batches, callbacks, **validation)
    average = optimizers.averaged_weights(unbroken)[0]
    np.testing.assert_array_equal(seen[-1], average)
    assert not np.allclose(average, unbroken.get_weights()[0], atol=1e-4)

    resumed = keras.saving.load_model(tmp_path / "0.keras")
    rest = fit(resumed, batches, callbacks, initial_epoch=1, **validation)
    np.testing.assert_array_equal(resumed.get_weights()[0], unbroken.get_weights()[0])
    np.testing.assert_array_equal(optimizers.averaged_weights(resumed)[0], average)
    assert rest.history["val_loss"] == whole.history["val_loss"][1:]


def square_root_loss(y_true, y_pred):
    """0 where the prediction is right, with a gradient that is not a number there."""
    return ops.mean(ops.sqrt(ops.abs(y_pred - y_true)), axis=-1)


@pytest.mark.parametrize(
    ("poison", "loss", "accumulate", "what"),
    [
        (np.nan, "mse", None, "the loss is nan"),
        (np.inf, "mse", None, "the loss is inf|the loss is nan"),
        (0.0, square_root_loss, None, "but . weights are not finite"),
        (0.0, square_root_loss, 3, "but . weights are not finite"),
    ],
)
def test_the_batch_that_spoilt_the_weights_is_kept(tmp_path, poison, loss, accumulate, what):
    batches = numbers(poison, epoch=1, step=2)
    optimizer = optimizers.AdamW(0.01, gradient_accumulation_steps=accumulate)
    stop = StopOnNonFinite(
        tmp_path, lambda epoch, step: (*batches[4 * epoch + step], ["a.png", "b.png"])
    )
    saved = []
    save = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: saved.append(epoch))
    with pytest.raises(RunStoppedError, match=what) as caught:
        fit(regression(optimizer, loss), batches, [stop, save])
    assert caught.value.status == 1
    file = tmp_path / "nan_batch.npz"
    for said in ("epoch 2, step 3", f"{file}: a.png, b.png", "--clip-norm"):
        assert said in str(caught.value)
    assert saved == [0]
    with np.load(file) as kept:
        np.testing.assert_array_equal(kept["images"], batches[6][0])
        np.testing.assert_array_equal(kept["labels"], batches[6][1])
        assert kept["names"].tolist() == ["a.png", "b.png"]
        assert (kept["epoch"], kept["step"]) == (1, 2)
        assert kept["learning_rate"] == pytest.approx(0.01)
        assert "logs/loss" in kept.files


def test_a_batch_that_cannot_be_made_again_does_not_hide_the_reason(tmp_path):
    def gone(epoch, step):
        raise OSError("the disk is gone")

    stop = StopOnNonFinite(tmp_path, gone)
    with pytest.raises(RunStoppedError, match=r"the loss is nan.*the disk is gone"):
        fit(regression(), numbers(np.nan, 0, 0), [stop])


def test_steps_that_a_loss_scale_leaves_out_stop_nothing(tmp_path):
    optimizer = keras.optimizers.LossScaleOptimizer(
        optimizers.AdamW(0.01), initial_scale=3e38, dynamic_growth_steps=1000
    )
    model = regression(optimizer)
    batches = [(x, y + 100.0) for x, y in numbers()]
    fit(model, batches, [StopOnNonFinite(tmp_path, lambda epoch, step: None)])
    assert int(optimizer.inner_optimizer.iterations.numpy()) < 12
    assert np.isfinite(model.get_weights()[0]).all()


class SendSignal(keras.callbacks.Callback):
    """Send this process SIGTERM at one moment of a run, and note what is done after it."""

    def __init__(self, *moment):
        super().__init__()
        self.moment, self.epoch, self.calls = moment, 0, []

    def reach(self, name, batch=0):
        self.calls.append((name, self.epoch, batch))
        if self.calls[-1] == self.moment:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        self.reach("step", batch)

    def on_test_batch_end(self, batch, logs=None):
        self.reach("validation", batch)

    def on_epoch_end(self, epoch, logs=None):
        self.reach("epoch end")


@pytest.mark.parametrize(
    ("moment", "message"),
    [
        (("step", 0, 1), "resumes from the start"),
        (("step", 1, 2), "resumes after epoch 1"),
        (("validation", 1, 0), "resumes after epoch 1"),
        (("epoch end", 1, 0), "resumes after epoch 2"),
    ],
)
def test_sigterm_ends_a_run_between_two_steps(moment, message, capsys):
    before = signal.getsignal(signal.SIGTERM)
    send = SendSignal(*moment)
    with (
        pytest.raises(RunStoppedError, match=f"stopped by SIGTERM.*{message}") as caught,
        StopOnSignal() as stop,
    ):
        fit(regression(), numbers(), [send, stop], validation_data=numbers()[0])
    assert caught.value.status == 143
    assert send.calls[-1] == moment
    assert "SIGTERM: stopping after this step" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_ctrl_c_ends_a_run_at_once_and_an_ignored_one_stays_ignored():
    # A test runner in the background may not have Python's own handling of Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), StopOnSignal() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.received is signal.SIGINT
            os.kill(os.getpid(), signal.SIGINT)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with StopOnSignal() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.received is None
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_progress_line_has_speed_and_time_left():
    """On a resumed run: epoch 3 of 4 after one of 10 steps; the last epoch costs twice as much."""
    progress = Progress(10, [1.0, 1.0, 1.0, 2.0], initial_epoch=2, batch_size=8)
    progress.set_model(regression())
    line = progress.step_line(1, {"loss": 1.25})
    assert line == "epoch 3/4  step 1/10  loss 1.250  learning rate 0.01"
    progress.step_seconds = [9.0, 0.5, 0.5]
    progress.rest_seconds = [4.0, 6.0]
    line = progress.step_line(1, {"loss": 1.25})
    assert line.endswith("0.50 s/step  16.0 images/s  0:24 left")  # 4.5 + 10 + 2 * 5 seconds


def test_the_loss_is_split_into_its_terms():
    inputs = keras.Input((3,))
    penalty = keras.regularizers.L2(0.5)
    outputs = {
        "segmentation": keras.layers.Dense(1, kernel_regularizer=penalty, name="punished")(inputs),
        "auxiliary": keras.layers.Dense(1)(inputs),
    }
    model = keras.Model(inputs, outputs)
    both = dict.fromkeys(outputs, "mse")
    model.compile("sgd", both, {"segmentation": 1.0, "auxiliary": 0.4})
    kernel = model.get_layer("punished").kernel.numpy()
    logs = model.evaluate(
        np.ones((2, 3)), {name: np.zeros((2, 1)) for name in outputs}, verbose=0, return_dict=True
    )
    terms = training_logs.loss_terms(model, logs)
    assert terms.keys() == {"total", "segmentation", "auxiliary", "regularization"}
    assert terms["regularization"] == pytest.approx(0.5 * np.sum(kernel**2), rel=1e-4)
    assert terms["total"] == pytest.approx(
        terms["segmentation"] + 0.4 * terms["auxiliary"] + terms["regularization"], rel=1e-5
    )
    assert training_logs.loss_terms(regression(), {"loss": 2.0}) == {"total": 2.0}

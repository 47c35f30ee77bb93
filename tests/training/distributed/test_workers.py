"""Workers on this machine, one process each, against one process and Keras' own `fit`."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, write_folder

from alignseg_tf.data.label_space import IGNORE, LabelSpace
from alignseg_tf.data.listing import read_folder
from training.data import Checked
from training.distributed import workers as multi_worker
from training.distributed.fit import validation_batches
from training.distributed.workers import Worker
from training.recipe import RecipeError

# The data of both scripts, and their model without the randomness of dropout.
COMMON = """
import os, signal, sys
from pathlib import Path
signal.alarm(900)  # whatever becomes of the tests; it outlives a restart
import alignseg_tf
import keras, numpy as np, tensorflow as tf
from alignseg_tf import AlignSeg, backbones, losses, metrics, optimizers
from training.build import set_synchronized_batch_norm
from training.distributed import fit as distributed_fit, workers as multi_worker
EPOCHS, STEPS, BATCH, IMAGES = 2, 3, 4, 3

rng = np.random.default_rng(0)
images = rng.uniform(0, 255, (EPOCHS, STEPS, BATCH, 64, 64, 3)).astype("float32")
labels = rng.integers(0, 3, images.shape[:-1]).astype("int32")
labels[..., :8, :] = 255

def compiled(optimizer, **decoder):
    model = AlignSeg(backbones.resnet((1, 1, 1, 1), width=8), 3, channels=8, **decoder)
    model.compile(
        optimizer,
        {name: losses.CrossEntropy(255) for name in ("segmentation", "auxiliary")},
        {"segmentation": 1.0, "auxiliary": 0.4},
        {"segmentation": [metrics.MeanIoU(3, 255)]},
        jit_compile=False,
    )
    return model

def without_dropout(model):
    for head in ("segmentation_head", "auxiliary_head"):
        model.get_layer(head).spatial_dropout.rate = 0.0
"""

# Trains 2 epochs of 3 steps; argv: how (keras, workers), folder, 1 to be killed in epoch 2.
SCRIPT = (
    COMMON
    + """
how, folder, killed = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "1"
last, done = folder / "last.keras", folder / "done.txt"

def dataset(images, labels, batch):
    both = {"segmentation": labels, "auxiliary": labels}
    return tf.data.Dataset.from_tensor_slices((images, both)).batch(batch)

def training(first, index, count):
    part = slice(index * BATCH // count, (index + 1) * BATCH // count)
    flat = [x[first:, :, part].reshape(-1, *x.shape[3:]) for x in (images, labels)]
    return dataset(*flat, BATCH // count)

def validation(index, count):
    x, y = images[0, 0, :IMAGES], labels[1, 1, :IMAGES]
    return dataset(x[index::count], y[index::count], 1)

class Kill(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
    def on_train_batch_end(self, batch, logs=None):
        if killed and (self.epoch, batch) == (1, 1):
            os.kill(os.getpid(), signal.SIGKILL)

class Keep(keras.callbacks.Callback):
    "What the chief alone does; it reads the metrics too."
    def on_epoch_end(self, epoch, logs=None):
        matrix = self.model._compile_metrics.metrics[0].confusion_matrix()
        np.savez(folder / f"epoch{epoch}.npz", confusion=matrix, **logs)
        self.model.save(last)
        done.write_text(str(epoch + 1))

def train(worker):
    if worker.count > 1:
        multi_worker.meet(worker, {"last.keras": last.is_file()}, wait_seconds=120)
    strategy = distributed_fit.strategy(worker)
    keras.utils.set_random_seed(0)
    with strategy.scope():
        first = 0
        if last.is_file():
            model = keras.saving.load_model(last)
            first = int(done.read_text())
            print(f"resuming after epoch {first}", flush=True)
        else:
            rate = keras.optimizers.schedules.PolynomialDecay(0.01, EPOCHS * STEPS)
            optimizer = optimizers.SGDWithL2(rate, 0.9, 1e-4)
            model = compiled(optimizer, aggregation="bilinear", context=None)
        set_synchronized_batch_norm(model, worker.count > 1)
        without_dropout(model)  # each worker draws masks of its own
    callbacks = [metrics.RaiseOnInvalidLabels(), keras.callbacks.TerminateOnNaN()]
    callbacks += [Keep()] if worker.is_chief else [distributed_fit.worker_progress(worker, EPOCHS)]
    callbacks.append(Kill())
    here = worker.index, worker.count
    if how == "keras":
        model.fit(
            training(first, *here), validation_data=validation(*here), initial_epoch=first,
            epochs=EPOCHS, steps_per_epoch=STEPS, callbacks=callbacks, shuffle=False, verbose=0,
        )
    else:
        distributed_fit.fit_workers(
            model, strategy, training(first, *here), validation(*here), callbacks,
            range(first, EPOCHS), STEPS, range(1, EPOCHS + 1),
        )
    state = {v.path: np.array(v) for v in [*model.variables, *model.optimizer.variables]
             if "seed" not in v.path}
    np.savez(folder / f"worker{worker.index}.npz", **state)

worker = multi_worker.this_worker()
with multi_worker.restart_when_a_worker_is_lost(worker, last):
    train(worker)
"""
)

# One step on one and on two logical CPU devices; argv: a file.
DEVICES = (
    COMMON
    + """
mirrored = distributed_fit.strategy(multi_worker.Worker(), 2)
states = {}
for name, strategy in (("one", tf.distribute.OneDeviceStrategy("CPU:0")), ("two", mirrored)):
    assert strategy.num_replicas_in_sync == (1 if name == "one" else 2)
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = compiled(keras.optimizers.SGD(1.0))
        without_dropout(model)
        set_synchronized_batch_norm(model, name == "two")
    before = [np.array(weight) for weight in model.trainable_weights]
    both = dict.fromkeys(("segmentation", "auxiliary"), labels[0, 0])
    logs = model.fit(images[0, 0], both, batch_size=BATCH, shuffle=False, verbose=0).history
    for start, weight in zip(before, model.trainable_weights):
        states[f"{name}/gradient/{weight.path}"] = start - np.array(weight)
    for weight in model.non_trainable_weights:
        if "seed" not in weight.path:
            states[f"{name}/{weight.path}"] = np.array(weight)
    states |= {f"{name}/{key}": np.array(value) for key, value in logs.items()}
np.savez(sys.argv[1], **states)
"""
)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Processes:
    """Processes with their output in files; none outlives the `with` block."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.running: list[tuple[subprocess.Popen, Path]] = []

    def start(self, *arguments: str, task: str | None = None) -> subprocess.Popen:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TF_CONFIG")}
        if task is not None:
            environment["TF_CONFIG"] = task
        log = self.folder / f"process{len(self.running)}.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-c", SCRIPT, *arguments], cwd=ROOT, env=environment,
                stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.running.append((process, log))
        return process

    def wait(self, process: subprocess.Popen, status: int, seconds: float = 300) -> str:
        """Wait for a process to end with a status; return its output."""
        try:
            found = process.wait(seconds)
        except subprocess.TimeoutExpired:
            found = None
        if found != status:
            texts = [f"--- {log.name}\n{log.read_text()}" for _, log in self.running]
            pytest.fail(f"expected status {status}, received {found}\n" + "\n".join(texts))
        return next(log for p, log in self.running if p is process).read_text()

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *exception: object) -> None:
        for process, _ in self.running:
            process.kill()
            process.wait()


def two_tasks() -> list[str]:
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    return [
        json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        for index in range(2)
    ]


def assert_same(ours: Path, theirs: Path, rtol: float = 1e-5) -> None:
    with np.load(ours) as a, np.load(theirs) as b:
        assert set(a.files) == set(b.files)
        for name in a.files:
            np.testing.assert_allclose(a[name], b[name], rtol=rtol, atol=rtol, err_msg=name)


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory) -> Path:
    """The folder of an unbroken run of two workers."""
    folder = tmp_path_factory.mktemp("two")
    with Processes(folder) as processes:
        started = [processes.start("workers", str(folder), "0", task=task) for task in two_tasks()]
        texts = [processes.wait(process, 0) for process in started]
    assert "worker 1 of 2: epoch 2/2 done" in texts[1]
    return folder


@pytest.mark.slow
def test_two_workers_train_as_keras_does_alone(two_workers, tmp_path):
    """Weights, moving statistics, momentum, losses, metrics: those of one process."""
    with Processes(tmp_path) as processes:
        processes.wait(processes.start("keras", str(tmp_path), "0"), 0)
    # Over six steps rounding is enlarged by each ReLU that it flips: 5e-7 and 7e-4 were seen. Batch
    # norms that are not synchronised differ by 1e-2. Equality of one step is the next test's.
    assert_same(two_workers / "worker0.npz", tmp_path / "worker0.npz", rtol=2e-3)
    for epoch, rtol in ((0, 1e-4), (1, 2e-3)):
        ours, theirs = (np.load(folder / f"epoch{epoch}.npz") for folder in (two_workers, tmp_path))
        assert {"loss", "val_loss", "val_auxiliary_loss"} <= set(ours.files) == set(theirs.files)
        for name in ours.files:
            if name.endswith("loss"):
                np.testing.assert_allclose(ours[name], theirs[name], rtol=rtol, err_msg=name)
            elif name.endswith("mean_iou"):  # a pixel may be undecided between two classes
                np.testing.assert_allclose(ours[name], theirs[name], atol=1e-3, err_msg=name)
        assert ours["confusion"].sum() == theirs["confusion"].sum() == 3 * 56 * 64
        assert np.abs(ours["confusion"] - theirs["confusion"]).sum() < 60
    with np.load(tmp_path / "worker0.npz") as state:
        assert any("moving_variance" in name for name in state.files)
        assert any("momentum" in name for name in state.files)
    assert_same(two_workers / "worker1.npz", two_workers / "worker0.npz", rtol=0)


@pytest.mark.slow
def test_two_devices_have_the_gradients_of_one(tmp_path):
    """One step of plain SGD with rate 1: what the weights change by are the gradients."""
    arguments = [sys.executable, "-c", DEVICES, str(tmp_path / "states.npz")]
    result = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    with np.load(tmp_path / "states.npz") as states:
        names = [name.removeprefix("one/") for name in states.files if name.startswith("one/")]
        for kind in ("gradient/", "moving_variance", "loss"):
            assert any(kind in name for name in names)
        for name in names:
            # Measured: gradients 4e-6 where the largest is 0.2, moving statistics 1e-6 relative.
            np.testing.assert_allclose(
                states[f"two/{name}"], states[f"one/{name}"], rtol=1e-5, atol=1e-5, err_msg=name
            )
        gradients = [states[f"one/{name}"] for name in names if name.startswith("gradient/")]
        assert max(np.abs(gradient).max() for gradient in gradients) > 0.1


@pytest.mark.slow
def test_a_killed_worker_is_waited_for(two_workers, tmp_path):
    """SIGKILL in the second epoch; only the killed worker is started again."""
    tasks = two_tasks()
    with Processes(tmp_path) as processes:
        chief = processes.start("workers", str(tmp_path), "0", task=tasks[0])
        killed = processes.start("workers", str(tmp_path), "1", task=tasks[1])
        processes.wait(killed, -signal.SIGKILL)
        again = processes.start("workers", str(tmp_path), "0", task=tasks[1])
        processes.wait(again, 0)
        text = processes.wait(chief, 0)
    assert "worker 0: another worker is gone" in text
    assert "resuming after epoch 1" in text
    for name in ("worker0.npz", "worker1.npz", "epoch1.npz"):
        assert_same(tmp_path / name, two_workers / name)


def test_the_task_of_this_process(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert multi_worker.this_worker() == Worker()
    assert multi_worker.this_worker().is_chief
    cluster = {"chief": ["a:1"], "worker": ["b:2", "c:3"], "evaluator": ["d:4"]}
    for task, index in ((("chief", 0), 0), (("worker", 0), 1), (("worker", "1"), 2)):
        config = {"cluster": cluster, "task": {"type": task[0], "index": task[1]}}
        monkeypatch.setenv("TF_CONFIG", json.dumps(config))
        assert multi_worker.this_worker() == Worker(index, ("a:1", "b:2", "c:3"))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"cluster": {"worker": ["a:1"]}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}',
    ],
)
def test_a_wrong_task_is_refused(text, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(RecipeError, match="TF_CONFIG must be JSON such as"):
        multi_worker.this_worker()


def meet_all(facts: list[dict], chief_waits: float = 30, absent: int | None = None) -> list[str]:
    """Let workers meet, one a thread; return what each raised, or an empty text."""
    addresses = tuple(f"127.0.0.1:{port}" for port in free_ports(len(facts)))
    results = [""] * len(facts)

    def run(index: int) -> None:
        try:
            wait_seconds = 1 if absent == 0 else 30 if index else chief_waits
            multi_worker.meet(Worker(index, addresses), facts[index], wait_seconds)
        except RecipeError as error:
            results[index] = str(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(facts)) if i != absent]
    for thread in reversed(threads):  # the chief comes last
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_workers_that_agree_meet():
    assert meet_all([{"recipe": 7}] * 3) == [""] * 3


def test_workers_that_differ_are_refused():
    results = meet_all([{"recipe": 7}, {"recipe": 8}])
    assert results == ["the workers differ in recipe (7 on worker 0, 8 on worker 1)"] * 2


def test_a_worker_that_does_not_come_is_named():
    results = meet_all([{}] * 3, chief_waits=3, absent=2)
    assert results[0].startswith("these workers did not come: 2 (127.0.0.1:")
    assert results[1] == results[0]
    assert "the chief did not come: worker 0" in meet_all([{}] * 2, absent=0)[1]


def test_a_stranger_at_the_port_disturbs_nobody(capsys):
    """TensorFlow's server of a broken run, or somebody's browser."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    workers = [Worker(index, (address, "127.0.0.1:1")) for index in range(2)]
    chief = threading.Thread(target=multi_worker.meet, args=(workers[0], {}, 20))
    chief.start()
    host, port = address.split(":")
    for _ in range(100):
        try:
            with socket.create_connection((host, int(port)), 5) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            break
        except OSError:
            threading.Event().wait(0.05)
    multi_worker.meet(workers[1], {}, 20)
    chief.join(30)
    assert not chief.is_alive()


def test_it_is_given_up_after_some_restarts(tmp_path, monkeypatch, capsys):
    """The count starts anew when there is a new checkpoint."""
    import tensorflow as tf

    started = []
    monkeypatch.setattr(multi_worker, "RESTART_DELAY", 0.0)
    monkeypatch.setattr(os, "set_inheritable", lambda *arguments: None)
    monkeypatch.setattr(os, "execv", lambda *arguments: started.append(arguments))
    monkeypatch.setenv(multi_worker.RESTARTS, "0 -")

    def lose(worker: Worker) -> None:
        with multi_worker.restart_when_a_worker_is_lost(worker, tmp_path / "last.keras"):
            raise tf.errors.UnavailableError(None, None, "gone")

    two = Worker(1, ("a:1", "b:2"))
    for _ in range(multi_worker.MAX_RESTARTS):
        lose(two)
    with pytest.raises(RecipeError, match="lost another worker 6 times"):
        lose(two)
    (tmp_path / "last.keras").write_bytes(b"")
    lose(two)
    assert started == [(sys.executable, sys.orig_argv)] * (multi_worker.MAX_RESTARTS + 1)
    assert "worker 1: another worker is gone (UnavailableError)" in capsys.readouterr().err
    with pytest.raises(tf.errors.UnavailableError):
        lose(Worker())


@pytest.mark.parametrize(("images", "workers"), [(4, 2), (1, 2), (7, 3)])
@pytest.mark.parametrize(("replicas", "one_size"), [(1, True), (2, True), (2, False)])
def test_workers_share_the_validation(tmp_path, images, workers, replicas, one_size):
    """Each image is evaluated once; the devices of a worker all have one in each step."""
    sizes = ((64, 96),) if one_size else ((64, 96), (72, 64))
    samples = read_folder(write_folder(tmp_path, train=1, val=images, sizes=sizes), "val")
    space = LabelSpace(("ground", "box", "disc"))
    report = SimpleNamespace(sizes=np.resize(sizes, (images, 2)))
    data = Checked(space, [], samples, report, report)
    found = []
    for index in range(workers):
        share = validation_batches(data, Worker(index, ("a:1",) * workers), replicas)
        batches = [y.numpy() for _, y in share]
        assert len(batches) == int(share.cardinality())
        assert all(len(y) == 1 for y in batches)
        for step in range(0, len(batches), replicas):
            assert len({y.shape for y in batches[step : step + replicas]}) == 1
        assert len(batches) % replicas == 0
        found += [y for y in batches if (y != IGNORE).any()]
    everything = [y.numpy() for _, y in validation_batches(data, Worker(), 1)]
    assert len(everything) == images
    assert sorted(y.tobytes() for y in found) == sorted(y.tobytes() for y in everything)

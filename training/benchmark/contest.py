"""Programs that do the same work in turn, A B B A: what is compared suffers the same machine.

Each contestant is a process of its own, so that one's threads, memory and libraries are not
another's. All are started and warmed up, then asked for one turn after another, each round
beginning with the next of them; only one computes at a time.

A contestant is a file of Python with a dict `FORMS` from names to functions

    def prepare(task: Task) -> Callable[[], Any]

that return a function doing the work once and waiting for its result. `forms.py` has this
library's, `torch_forms.py` PyTorch's; `--against FILE` takes any other.
"""

import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alignseg_tf.system.memory import peak_resident_bytes
from alignseg_tf.system.progress import progress_bar

# Runs before the first that counts: they trace, compile and fill caches.
WARM_UP = 2
# A turn of a contestant that is quicker than this, in seconds, is as many runs as this is long,
# after one that does not count: in that one threads wake up, caches fill, and the threads of the
# contestant before stop to spin.
SHORTEST_TURN = 0.5
# A process whose library cannot start prints why; these are its last lines.
LINES_OF_ERROR = 12


@dataclasses.dataclass(frozen=True)
class Task:
    """What every contestant has to do. Fields that a piece of work has no use for are ignored.

    Attributes:
        work: `inference`, `training`, `sampling`, or `sampling_training`, which goes back too.
        backbone: `resnet50`, `resnet101` or `efficientnet_lite0`.
        height: of an image in pixels; of a map in cells for sampling.
        width: as `height`.
        batch: images in a run.
        classes: channels of the logits.
        channels: width of the decoder; of the map for sampling.
        align: off for plain resizing and a global context in place of AlignFA and AlignCM.
        seed: of weights and pixels.
    """

    work: str = "inference"
    backbone: str = "efficientnet_lite0"
    height: int = 360
    width: int = 480
    batch: int = 1
    classes: int = 19
    channels: int = 64
    align: bool = True
    seed: int = 0

    def images(self) -> np.ndarray:
        """Return RGB pixels 0..255, float32 [B, H, W, 3]: noise, enlarged eight times."""
        rng = np.random.default_rng(self.seed)
        small = rng.integers(0, 256, (self.batch, self.height // 8 + 1, self.width // 8 + 1, 3))
        large = small.repeat(8, 1).repeat(8, 2)[:, : self.height, : self.width]
        return np.ascontiguousarray(large, np.float32)

    def labels(self) -> np.ndarray:
        """Return class ids, int64 [B, H, W]."""
        rng = np.random.default_rng(self.seed + 1)
        shape = (self.batch, self.height // 8 + 1, self.width // 8 + 1)
        small = rng.integers(0, self.classes, shape)
        return small.repeat(8, 1).repeat(8, 2)[:, : self.height, : self.width]

    def map_and_offsets(self) -> tuple[np.ndarray, np.ndarray]:
        """Return a map, float32 [B, H, W, C], and offsets of some cells, float32 [B, H, W, 2]."""
        rng = np.random.default_rng(self.seed)
        shape = (self.batch, self.height, self.width)
        features = rng.standard_normal((*shape, self.channels)).astype(np.float32)
        return features, 2 * rng.standard_normal((*shape, 2)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A form of a file, and the environment of its process.

    Attributes:
        file: Python with a dict `FORMS`.
        form: a key of it.
        environment: variables that its process gets besides this one's.
    """

    file: Path
    form: str
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.file.stem.removesuffix('_forms')} {self.form}"


@dataclasses.dataclass
class Runs:
    """What one contestant took.

    Attributes:
        seconds: of each round.
        processor_seconds: the same, of all cores together.
        peak_bytes: the largest memory of its process.
    """

    seconds: list[float] = dataclasses.field(default_factory=list)
    processor_seconds: list[float] = dataclasses.field(default_factory=list)
    peak_bytes: int = 0

    def median(self) -> float:
        """Return the median of the seconds."""
        return float(np.median(self.seconds))

    def busy(self, cores: int) -> float:
        """Return the share of the machine's cores that worked, 0..1."""
        return float(sum(self.processor_seconds) / sum(self.seconds) / cores)


@dataclasses.dataclass(frozen=True)
class Ratio:
    """One contestant's time over another's, round by round.

    Attributes:
        median: of the rounds.
        low: the lower quartile.
        high: the upper quartile.
    """

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio(ours: Runs, theirs: Runs) -> Ratio:
    """Compare rounds that were neighbours in time."""
    each = np.array(ours.seconds) / np.array(theirs.seconds)
    low, median, high = np.quantile(each, [0.25, 0.5, 0.75])
    return Ratio(float(median), float(low), float(high))


def hold_contest(
    contestants: Sequence[tuple[Contestant, Task]],
    rounds: int,
    what: str = "measuring",
) -> list[Runs]:
    """Let contestants work in turn.

    Args:
        contestants: who takes part, and what each does.
        rounds: how often.
        what: name of the progress bar.

    Returns:
        What each took, in the order of `contestants`.

    Raises:
        ValueError: a contestant has no such form, or its process failed; the message has its end.
    """
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(_process(*pair)) for pair in contestants]
        results = [Runs() for _ in contestants]
        turns = list(zip(processes, results, strict=True))
        for done in progress_bar(range(rounds), what, unit="round"):
            first = done % len(turns)  # nobody always follows the same one
            for process, runs in turns[first:] + turns[:first]:
                answer = process.ask()
                runs.seconds.append(answer["seconds"])
                runs.processor_seconds.append(answer["processor_seconds"])
                runs.peak_bytes = answer["peak_bytes"]
    return results


class _Process:
    """The parent's end of a contestant."""

    def __init__(self, contestant: Contestant, child: subprocess.Popen, log: Path):
        self.contestant, self.child, self.log = contestant, child, log

    def ask(self) -> dict[str, Any]:
        """Have it run once."""
        assert self.child.stdin and self.child.stdout
        try:
            self.child.stdin.write("run\n")
            self.child.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; what it said is below
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.child.stdout
        line = self.child.stdout.readline()
        if not line:
            end = self.log.read_text(errors="replace").splitlines()[-LINES_OF_ERROR:]
            raise ValueError(f"{self.contestant}: its process failed:\n" + "\n".join(end))
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ValueError(f"{self.contestant}: {answer['error']}")
        return answer


@contextlib.contextmanager
def _process(contestant: Contestant, task: Task) -> Iterator[_Process]:
    """Start a contestant and wait until it has warmed up; end it afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        with log.open("w") as stderr:
            child = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=os.environ | {"PYTHONPATH": _python_path()} | dict(contestant.environment),
            )
        assert child.stdin and child.stdout
        try:
            order = {"file": str(contestant.file.resolve()), "form": contestant.form}
            child.stdin.write(json.dumps(order | {"task": dataclasses.asdict(task)}) + "\n")
            child.stdin.flush()
            process = _Process(contestant, child, log)
            process.answer()
            yield process
        finally:
            child.stdin.close()
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            child.stdout.close()


def _python_path() -> str:
    """Return a PYTHONPATH on which `training` is found."""
    inherited = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(Path(__file__).parents[2]), *([inherited] if inherited else [])])


def load_forms(file: Path) -> dict[str, Callable[[Task], Callable[[], Any]]]:
    """Return the dict `FORMS` of a Python file.

    Raises:
        ValueError: there is no such file, or it has no `FORMS`.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no such file; expected Python with a dict FORMS")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file}: expected a Python file with a dict FORMS")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    forms = getattr(module, "FORMS", None)
    if not isinstance(forms, dict):
        raise ValueError(f"{file}: expected a dict FORMS. Received: {type(forms).__name__}")
    return forms


def prepare_form(file: Path, form: str, task: Task) -> Callable[[], Any]:
    """Return the function that does a task in a form of a file.

    Raises:
        ValueError: as `load_forms`, or there is no such form.
    """
    forms = load_forms(file)
    if form not in forms:
        raise ValueError(f"no form {form!r}; there are {', '.join(forms)}")
    return forms[form](task)


def _turn(run: Callable[[], Any]) -> dict[str, Any]:
    """Return what a run takes, the mean of several if they are short."""
    seconds, processor_seconds = _timed(run, 1)
    if seconds < SHORTEST_TURN:
        seconds, processor_seconds = _timed(run, math.ceil(SHORTEST_TURN / seconds))
    return {
        "seconds": seconds,
        "processor_seconds": processor_seconds,
        "peak_bytes": peak_resident_bytes(),
    }


def _timed(run: Callable[[], Any], times: int) -> tuple[float, float]:
    """Return the seconds of a run, and those of all cores together."""
    processor, start = time.process_time(), time.perf_counter()
    for _ in range(times):
        run()
    end = time.perf_counter()
    return (end - start) / times, (time.process_time() - processor) / times


def _compete() -> None:
    """Be a contestant: an order on the first line of standard input, then a line for each run."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    order = json.loads(sys.stdin.readline())
    try:
        run = prepare_form(Path(order["file"]), order["form"], Task(**order["task"]))
    except ValueError as error:
        answers.write(json.dumps({"error": str(error)}) + "\n")
        return
    for _ in range(WARM_UP):
        run()
    answers.write(json.dumps({"ready": True}) + "\n")
    for _ in sys.stdin:
        answers.write(json.dumps(_turn(run)) + "\n")


if __name__ == "__main__":
    _compete()

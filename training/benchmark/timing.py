"""Time implementations of one task alternately, A B B A, so that the machine treats all alike.

Each implementation has its own process, threads, memory and libraries. All are built and warmed up
before the first round. Each round starts with the next one, and one computes at a time.

An implementation is an entry of the dict `FORMS` of a Python file, a function

    def prepare(task: Task) -> Callable[[], Any]

The returned function does the work once and waits for the result. `forms.py` has this library's,
`torch_forms.py` PyTorch's; `speed --against FILE` takes any other.
"""

import contextlib
import dataclasses
import json
import math
import os
import resource
import runpy
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
# A turn repeats runs shorter than this, in seconds. The first of them is not timed: threads wake
# up, caches fill, and the threads of the previous implementation stop spinning.
SHORTEST_TURN = 0.5


@dataclasses.dataclass(frozen=True)
class Task:
    """The task of each implementation.

    Attributes:
        work: `inference`, `training`, `sampling`, or `sampling_training` (forward and backward).
        backbone: `resnet50`, `resnet101` or `efficientnet_lite0`.
        height: of an image in pixels, of a sampled map in cells.
        width: as `height`.
        batch: images in a run.
        classes: channels of the logits.
        channels: width of the decoder or of the sampled map.
        align: False for plain resizing and a global context.
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
        """Return noise in blocks of 8x8 pixels, float32 [B, H, W, 3] in 0..255."""
        return self._blocks(self.seed, 256, 3).astype(np.float32)

    def labels(self) -> np.ndarray:
        """Return class ids, int64 [B, H, W]."""
        return self._blocks(self.seed + 1, self.classes)

    def _blocks(self, seed: int, end: int, *channels: int) -> np.ndarray:
        shape = (self.batch, self.height // 8 + 1, self.width // 8 + 1, *channels)
        small = np.random.default_rng(seed).integers(0, end, shape)
        return small.repeat(8, 1).repeat(8, 2)[:, : self.height, : self.width]

    def map_and_offsets(self) -> tuple[np.ndarray, np.ndarray]:
        """Return a map, float32 [B, H, W, C], and offsets in cells, float32 [B, H, W, 2]."""
        rng = np.random.default_rng(self.seed)
        shape = (self.batch, self.height, self.width)
        features = rng.standard_normal((*shape, self.channels)).astype(np.float32)
        return features, 2 * rng.standard_normal((*shape, 2)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Implementation:
    """An entry of `FORMS` in a file."""

    file: Path
    form: str

    def __str__(self) -> str:
        return f"{self.file.stem.removesuffix('_forms')} {self.form}"


@dataclasses.dataclass
class Runs:
    """Seconds of each round, seconds of all cores together, and peak memory of the process."""

    seconds: list[float] = dataclasses.field(default_factory=list)
    processor_seconds: list[float] = dataclasses.field(default_factory=list)
    peak_bytes: int = 0

    def busy(self, cores: int) -> float:
        """Return the share of the machine's cores that worked, 0..1."""
        return float(sum(self.processor_seconds) / sum(self.seconds) / cores)


def ratio(ours: Runs, theirs: Runs) -> dict[str, float]:
    """Return the median and the quartiles of the ratios of neighbouring runs."""
    each = np.array(ours.seconds) / np.array(theirs.seconds)
    low, median, high = np.quantile(each, [0.25, 0.5, 0.75]).tolist()
    return {"median": median, "low": low, "high": high}


def time_alternately(
    implementations: Sequence[Implementation],
    task: Task,
    rounds: Iterable[int],
    environment: Mapping[str, str],
) -> list[Runs]:
    """Run each implementation once in each of the rounds, numbered from 0.

    The environment of their processes is this one's, with the defaults `environment`.

    Raises:
        ValueError: an implementation does not exist or failed.
    """
    with contextlib.ExitStack() as stack:
        turns = [
            (stack.enter_context(_process(x, task, environment)), Runs()) for x in implementations
        ]
        for number in rounds:
            first = number % len(turns)
            for ask, runs in turns[first:] + turns[:first]:
                answer = ask()
                runs.seconds.append(answer["seconds"])
                runs.processor_seconds.append(answer["processor_seconds"])
                runs.peak_bytes = answer["peak_bytes"]
    return [runs for _, runs in turns]


@contextlib.contextmanager
def _process(
    implementation: Implementation, task: Task, environment: Mapping[str, str]
) -> Iterator[Callable[[], dict[str, Any]]]:
    """Start an implementation, let it warm up, and yield what asks it for a turn."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    order = [str(implementation.file.resolve()), implementation.form]
    # With `-m`, the package would import TensorFlow.
    code = f"import sys; from {__name__} import main; main(*sys.argv[1:])"
    with subprocess.Popen(
        [sys.executable, "-c", code, *order, json.dumps(dataclasses.asdict(task))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**environment, **os.environ, "PYTHONPATH": path},
    ) as child:

        def ask() -> dict[str, Any]:
            assert child.stdin and child.stdout
            with contextlib.suppress(BrokenPipeError):  # it has ended, and said why
                print("run", file=child.stdin, flush=True)
            answer = json.loads(child.stdout.readline() or '{"error": "its process ended"}')
            if "error" in answer:
                raise ValueError(f"{implementation}: {answer['error']}")
            return answer

        try:
            ask()
            yield ask
        finally:
            child.kill()


def load_form(file: Path, form: str) -> Callable[[Task], Callable[[], Any]]:
    """Return an entry of the dict `FORMS` of a Python file.

    Raises:
        ValueError: there is no such file, dict or entry.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no such file; expected Python with a dict FORMS")
    forms = runpy.run_path(str(file)).get("FORMS")
    if not isinstance(forms, dict):
        raise ValueError(f"{file}: expected a dict FORMS. Received: {type(forms).__name__}")
    if form not in forms:
        raise ValueError(f"no form {form!r}; there are {', '.join(forms)}")
    return forms[form]


def _turn(run: Callable[[], Any]) -> dict[str, Any]:
    """Time a run, or the mean of several if they are short."""
    times = 1
    while True:
        processor, start = time.process_time(), time.perf_counter()
        for _ in range(times):
            run()
        seconds = (time.perf_counter() - start) / times
        if times > 1 or seconds >= SHORTEST_TURN:
            break
        times = max(2, math.ceil(SHORTEST_TURN / seconds))
    return {
        "seconds": seconds,
        "processor_seconds": (time.process_time() - processor) / times,
        # Linux counts in KiB. `alignseg_tf.system.environment` imports TensorFlow.
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def main(file: str, form: str, task: str) -> None:
    """Time a turn for each line on standard input; answer one line of JSON each."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    try:
        run = load_form(Path(file), form)(Task(**json.loads(task)))
        run()  # traces and compiles
        for _ in sys.stdin:
            print(json.dumps(_turn(run)), file=answers)
    except ValueError as error:
        print(json.dumps({"error": str(error)}), file=answers)
    except Exception:
        end = "".join(traceback.format_exc().splitlines(keepends=True)[-12:])
        print(json.dumps({"error": f"its process failed:\n{end}"}), file=answers)

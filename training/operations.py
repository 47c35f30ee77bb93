"""Where the time of a form goes: TensorFlow's profiler, summed by kind of operation.

The profiler records what each thread does. A kind's seconds are those in which a thread was in an
operation of that kind and not in another one within; threads that help an operation with its parts
have lines of their own and are not counted twice. Two operations may run at once, so the sum may
exceed the time of the run.
"""

import dataclasses
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alignseg_tf.environment import cores
from training.contest import WARM_UP, Task, prepare_form

# Kinds that take less than this share of all are summed as one.
LEAST_SHARE = 0.01


def measure_operations(file: Path, form: str, task: Task, rounds: int) -> dict[str, Any]:
    """Profile so many runs of a form of a task, after some that are not recorded.

    Args:
        file: as in `contest`, of this library: TensorFlow must do the work.
        form: one of its forms.
        task: what to do.
        rounds: runs that are recorded.

    Returns:
        `seconds` of a run, of which the profiler's own work is a part; `busy`, the share of the
        cores that worked; and `kinds`: for each kind of operation its `count` and `seconds` in a
        run, the slowest first.

    Raises:
        ValueError: as `contest.prepare_form`.
    """
    run = prepare_form(file, form, task)
    import tensorflow as tf

    for _ in range(WARM_UP):
        run()
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            processor, start = time.process_time(), time.perf_counter()
            for _ in range(rounds):
                run()
            seconds = time.perf_counter() - start
            processor = time.process_time() - processor
        (profile,) = Path(folder).rglob("*.xplane.pb")
        kinds = seconds_of_kinds(profile.read_bytes())
    return {
        "task": dataclasses.asdict(task),
        "form": form,
        "seconds": seconds / rounds,
        "busy": processor / seconds / cores(),
        "kinds": {
            kind: {"count": count / rounds, "seconds": taken / rounds}
            for kind, (count, taken) in sorted(kinds.items(), key=lambda item: -item[1][1])
        },
    }


def seconds_of_kinds(profile: bytes) -> dict[str, tuple[int, float]]:
    """Return how many operations of each kind a profile has, and the seconds in them alone.

    Args:
        profile: a serialized XSpace, what the profiler writes.
    """
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    found: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for plane in xplane_pb2.XSpace.FromString(profile).planes:
        names = {number: data.name for number, data in plane.event_metadata.items()}
        for line in plane.lines:
            for kind, picoseconds in _own_times(line.events, names):
                found[kind][0] += 1
                found[kind][1] += 1e-12 * picoseconds
    return {kind: (int(count), taken) for kind, (count, taken) in found.items()}


def _own_times(events: Iterable[Any], names: dict[int, str]) -> list[tuple[str, int]]:
    """Return kind and time of the operations on a thread, without that of those within."""
    times: list[list[Any]] = []
    open_ones: list[tuple[int, list[Any]]] = []
    for event in sorted(events, key=lambda event: (event.offset_ps, -event.duration_ps)):
        kind = _kind(names[event.metadata_id])
        if kind is None:
            continue
        while open_ones and open_ones[-1][0] <= event.offset_ps:
            open_ones.pop()
        if open_ones:
            open_ones[-1][1][1] -= event.duration_ps
        times.append([kind, event.duration_ps])
        open_ones.append((event.offset_ps + event.duration_ps, times[-1]))
    return [(kind, taken) for kind, taken in times]


def _kind(event: str) -> str | None:
    """Return the kind of operation that an event is: `Conv2D` of `model/stem/convolution:Conv2D`.

    The loops that XLA makes have names of their own, as `multiply_add_fusion.2`: they are `XLA`.
    """
    path, colon, kind = event.rpartition(":")
    if colon and not path.endswith(":") and "/" in path:
        return kind.removeprefix("_Mkl").removeprefix("Native")
    if "fusion" in event or event.startswith("wrapped_"):
        return "XLA"
    return None


def operations_table(result: dict[str, Any]) -> str:
    """Return what `measure_operations` found as a table."""
    kinds = result["kinds"]
    total = sum(kind["seconds"] for kind in kinds.values())
    lines = [f"{'':36}  {'count':>7}  {'ms':>8}  {'share':>6}"]
    rest = [0.0, 0.0]
    for name, kind in kinds.items():
        if kind["seconds"] < LEAST_SHARE * total:
            rest = [rest[0] + kind["count"], rest[1] + kind["seconds"]]
            continue
        lines.append(_row(name, kind["count"], kind["seconds"], total))
    lines += [_row("all others", rest[0], rest[1], total), _row("all", 0, total, total)]
    lines.append(
        f"A run took {1e3 * result['seconds']:.1f} ms, in which {result['busy']:.0%} of the cores "
        "worked."
    )
    return "\n".join(lines)


def _row(name: str, count: float, seconds: float, total: float) -> str:
    shown = f"{count:.0f}" if count else ""
    return f"{name:36}  {shown:>7}  {1e3 * seconds:8.1f}  {seconds / total:6.1%}"

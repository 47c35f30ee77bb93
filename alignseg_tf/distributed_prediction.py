"""Segment millions of pictures on the cores of one machine or of a Ray cluster.

What lies in the output folder, for a model whose fingerprint starts with MODEL:

    ab/cd/SHA256-MODEL_classes.png  class ids as grey values; SHA256 is of the picture's file and
                                    starts with `abcd`
    manifest/RUN-00000.parquet      a row a picture that has its result, see `MANIFEST`
    failures/RUN-00000.jsonl        a line a picture that has none: `path`, `reason`
    models/MODEL.json               the model's fingerprint and its classes

Names of results depend on content alone, so equal pictures have one result, and a picture that is
done twice, by whomever, is written twice with the same bytes. Several runs may write into one
folder at the same time.
"""

import argparse
import hashlib
import json
import logging
import os
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from alignseg_tf.data.readers import IMAGE_SUFFIXES, DataError, load_image, walk_files
from alignseg_tf.files import atomic_path, remove_leftovers, write_text
from alignseg_tf.fingerprints import fingerprint
from alignseg_tf.model import MIN_IMAGE_SIZE
from alignseg_tf.progress import counter, duration
from alignseg_tf.quiet import import_tensorflow_quietly, silent_stderr

if TYPE_CHECKING:
    import pyarrow as pa

# On processors several together are no faster than one by one; see `docs/many_pictures.md`.
DEFAULT_BATCH_SIZE = 1
# So much of the fingerprint is in the names of results.
FINGERPRINT_LENGTH = 16
# Decoded pictures that wait in an actor for others of their size have at most so many pixels.
MAX_WAITING_PIXELS = 2**24
# Pictures that a task reads, and an actor gets, at a time: many, for there are few messages then,
# unless actors at the end would wait for one that is still at work.
MAX_BLOCK_ROWS, BLOCKS_PER_ACTOR = 256, 16
# Encoded pictures are handed on in pieces of so many bytes.
READ_BYTES = 2**25
# An actor leaves so much of a core to the task that reads for it: there may be as many actors as
# cores.
READING_CPUS = 0.1
# A picture with which an actor died so many times is taken for the reason.
MAX_DEATHS = 3
# The manifest grows by a file after so many pictures, or so many seconds.
PART_ROWS, PART_SECONDS = 100_000, 60.0
# Columns of the manifest.
MANIFEST = {
    "path": "of the picture",
    "sha256": "of its content",
    "bytes": "size of its file",
    "mtime_ns": "when that was changed, in nanoseconds since the epoch",
    "model": "fingerprint",
    "output": "of the result, below the output folder",
    "height": "pixels; null where the result was there already",
    "width": "pixels",
    "status": "`written`, or `kept`: the result was there, from another run or an equal picture",
}
STEPS = ("reading", "decoding", "network", "writing")


def result_path(sha256: str, model: str) -> Path:
    """Return where a result lies below the output folder.

    Args:
        sha256: of the picture's file.
        model: the model's fingerprint.

    Example:
        >>> result_path("abcdef", "0123456789abcdef0123").as_posix()
        'ab/cd/abcdef-0123456789abcdef_classes.png'
    """
    name = f"{sha256}-{model[:FINGERPRINT_LENGTH]}_classes.png"
    return Path(sha256[:2], sha256[2:4], name)


@dataclass
class Summary:
    """What became of the pictures of a run.

    Attributes:
        counts: pictures by `written`, `kept`, `failed`.
        seconds: that the run took, with the start of Ray and of the actors.
        steps: seconds that all actors and tasks spent on each of `STEPS`.
        threads: cores of an actor.
    """

    threads: int = 1
    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    steps: Counter[str] = field(default_factory=Counter)

    def text(self) -> str:
        """Return a line about it."""
        kinds = ("written", "kept", "failed")
        shown = ", ".join(f"{self.counts[kind]} {kind}" for kind in kinds if self.counts[kind])
        line = f"{self.counts.total()} pictures in {duration(self.seconds)}: {shown}"
        if self.counts["written"]:
            total = sum(self.steps.values())
            shares = ", ".join(f"{step} {100 * self.steps[step] / total:.1f} %" for step in STEPS)
            each = total * self.threads / self.counts["written"]
            line += (
                f"; {self.counts['written'] / self.seconds:.2f} written/s, {each:.3f} core-seconds "
                f"each ({shares})"
            )
        return line


def read_pictures(table: "pa.Table", output: Path, model: str) -> Iterator["pa.Table"]:
    """Read the files of pictures whose results are missing; a Ray task.

    Args:
        table: `row`, `path`, and `sha256`, `bytes`, `mtime_ns` that the manifest knows, or null.
        output: the folder.
        model: the model's fingerprint.

    Yields:
        Tables with a row a picture, in order: what is known now, and the `content` of those that
        have to be segmented.
    """
    import pyarrow as pa

    rows: list[dict[str, Any]] = []
    size = 0
    for known in table.to_pylist():
        row = _read(known, output, model)
        rows.append(row)
        size += len(row["content"] or b"")
        if size >= READ_BYTES:
            yield pa.Table.from_pylist(rows, schema=_schema("content", pa.large_binary()))
            rows, size = [], 0
    yield pa.Table.from_pylist(rows, schema=_schema("content", pa.large_binary()))


def _schema(name: str, kind: Any) -> "pa.Schema":
    """What is known of a picture on its way, and one column more."""
    import pyarrow as pa

    integers = ("row", "bytes", "mtime_ns", "height", "width")
    texts = ("path", "sha256", "status", "reason")
    return pa.schema(
        [(column, pa.int64()) for column in integers]
        + [(column, pa.large_string()) for column in texts]
        + [(step, pa.float64()) for step in STEPS]
        + [(name, kind)]
    )


def _read(known: dict[str, Any], output: Path, model: str) -> dict[str, Any]:
    """Return what is known of a picture after a look at its file."""
    started = time.perf_counter()
    row = {"row": known["row"], "path": known["path"], "status": "", "content": None}
    try:
        with Path(known["path"]).open("rb") as file:
            there = os.fstat(file.fileno())
            row |= {"bytes": there.st_size, "mtime_ns": there.st_mtime_ns}
            same = (there.st_size, there.st_mtime_ns) == (known["bytes"], known["mtime_ns"])
            if same and (output / result_path(known["sha256"], model)).exists():
                return row | {"sha256": known["sha256"], "status": "known"}
            content = file.read()
    except OSError as error:
        return row | {"status": "failed", "reason": error.strerror or str(error)}
    row["sha256"] = hashlib.sha256(content).hexdigest()
    if (output / result_path(row["sha256"], model)).exists():
        row["status"] = "kept"
    else:
        row["content"] = content
    return row | {"reading": time.perf_counter() - started}


class Segmenter:
    """Decodes, segments and writes pictures; a Ray actor, which loads the model once.

    Args:
        saved_model: folder of the SavedModel.
        output: folder for the results.
        model: the model's fingerprint.
        batch_size: pictures of one size that go through the network at a time.
    """

    def __init__(self, saved_model: Path, output: Path, model: str, batch_size: int):
        import_tensorflow_quietly()
        from alignseg_tf.networks import SavedModelNetwork
        from alignseg_tf.prediction import Predictor

        self.predictor = Predictor(saved_model)
        network = self.predictor.network
        if not isinstance(network, SavedModelNetwork):
            raise ValueError(f"{saved_model}: expected the folder of a SavedModel")
        self.network = network
        self.output = output
        self.model = model
        self.batch_size = batch_size

    def __call__(self, table: "pa.Table") -> "pa.Table":
        """Segment the pictures of a table that `read_pictures` made, and say what became of them.

        Returns:
            The table with `status`, `reason` and `output` instead of `content`.
        """
        import pyarrow as pa

        rows = table.to_pylist()
        waiting: dict[tuple[int, int], list[tuple[dict[str, Any], np.ndarray]]] = defaultdict(list)
        seen: dict[str, dict[str, Any]] = {}
        for row in rows:
            content = row.pop("content")
            if row["status"]:
                continue
            if row["sha256"] in seen:  # the same again, which the first one decides
                continue
            seen[row["sha256"]] = row
            image = self._decode(row, content)
            if image is None:
                continue
            size = image.shape[:2]
            waiting[size].append((row, image))
            if len(waiting[size]) >= self._most_at_a_time(*size):
                self._segment(waiting.pop(size))
            pixels = sum(h * w * len(group) for (h, w), group in waiting.items())
            while waiting and pixels > MAX_WAITING_PIXELS:
                size = max(waiting, key=lambda size: size[0] * size[1] * len(waiting[size]))
                pixels -= size[0] * size[1] * len(waiting[size])
                self._segment(waiting.pop(size))
        for group in waiting.values():
            self._segment(group)
        for row in rows:
            if not row["status"]:
                first = seen[row["sha256"]]
                status = "kept" if first["status"] == "written" else first["status"]
                row |= {"status": status, "reason": first["reason"]}
            has_result = row["status"] in ("written", "kept")
            path = result_path(row["sha256"], self.model).as_posix() if has_result else None
            row["output"] = path
        return pa.Table.from_pylist(rows, schema=_schema("output", pa.large_string()))

    def _most_at_a_time(self, height: int, width: int) -> int:
        limit = self.predictor.protocol.largest_whole or 2**63
        return max(1, min(self.batch_size, limit // (height * width)))

    def _decode(self, row: dict[str, Any], content: bytes) -> np.ndarray | None:
        started = time.perf_counter()
        try:
            image = load_image(row["path"], content)
            if min(image.shape[:2]) < MIN_IMAGE_SIZE:
                raise DataError(
                    f"the picture is {image.shape[1]} x {image.shape[0]} pixels; expected at least "
                    f"{MIN_IMAGE_SIZE} x {MIN_IMAGE_SIZE}"
                )
        except DataError as error:
            reason = str(error).removeprefix(f"{row['path']}: ")
            row |= {"status": "failed", "reason": reason}
            return None
        row["height"], row["width"] = image.shape[:2]
        row["decoding"] = time.perf_counter() - started
        return image

    def _segment(self, group: Sequence[tuple[dict[str, Any], np.ndarray]]) -> None:
        """Segment pictures of one size and write the results."""
        import tensorflow as tf

        started = time.perf_counter()
        try:
            class_maps = self._class_maps(np.stack([image for _, image in group]))
        except (ValueError, tf.errors.OpError) as error:
            if len(group) > 1:
                for item in group:
                    self._segment([item])
            else:
                group[0][0].update(status="failed", reason=str(error))
            return
        seconds = (time.perf_counter() - started) / len(group)
        for (row, _), class_map in zip(group, class_maps, strict=True):
            started = time.perf_counter()
            try:
                with atomic_path(self.output / result_path(row["sha256"], self.model)) as path:
                    Image.fromarray(class_map).save(path)
            except OSError as error:  # the next one would not be written either
                row |= {"status": "stopped", "reason": str(error)}
                continue
            writing = time.perf_counter() - started
            row |= {"status": "written", "network": seconds, "writing": writing}

    def _class_maps(self, images: np.ndarray) -> Any:
        height, width = images.shape[1:3]
        if self.predictor.protocol.for_picture(height, width).is_plain:
            return self.network.class_maps(images)
        return [self.predictor.class_map(image) for image in images]  # in windows


class _Manifest:
    """Writes what became of pictures into files that are whole, part by part."""

    def __init__(self, output: Path, model: str):
        self.output = output
        self.model = model
        self.run = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}"
        self.parts = 0
        self.rows: list[dict[str, Any]] = []
        self.failures: list[dict[str, str]] = []
        self.written = time.monotonic()

    def add(self, row: dict[str, Any]) -> None:
        """Take down a picture."""
        if row["status"] in ("written", "kept"):
            self.rows.append({**row, "model": self.model})
        elif row["status"] != "known":
            self.failures.append({"path": row["path"], "reason": row["reason"]})
        if (
            len(self.rows) + len(self.failures) >= PART_ROWS
            or time.monotonic() - self.written > PART_SECONDS
        ):
            self.flush()

    def flush(self) -> None:
        """Write what was taken down since the last time."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        name = f"{self.run}-{self.parts:05d}"
        if self.rows:
            whole = _schema("output", pa.large_string()).append(
                pa.field("model", pa.large_string())
            )
            schema = pa.schema([whole.field(column) for column in MANIFEST])
            with atomic_path(self.output / "manifest" / f"{name}.parquet") as path:
                pq.write_table(pa.Table.from_pylist(self.rows, schema=schema), path)
        if self.failures:
            lines = "".join(f"{json.dumps(line)}\n" for line in self.failures)
            write_text(self.output / "failures" / f"{name}.jsonl", lines)
        self.parts += bool(self.rows or self.failures)
        self.rows, self.failures, self.written = [], [], time.monotonic()


def read_manifest(output: str | Path, model: str | None = None) -> "pa.Table":
    """Read what runs wrote down: a row a picture and model, of the latest run.

    Args:
        output: the folder of the results.
        model: fingerprint of a model; None for all.

    Returns:
        A table with the columns of `MANIFEST`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = []
    for path in sorted((Path(output) / "manifest").glob("[!.]*.parquet")):
        filters = None if model is None else [("model", "==", model)]
        parts.append(pq.read_table(path, columns=list(MANIFEST), filters=filters))
    if not parts:
        return pa.table({column: pa.array([], pa.large_string()) for column in MANIFEST})
    keys = ["path", "model"]
    others = [column for column in MANIFEST if column not in keys]
    table = pa.concat_tables(parts).group_by(keys, use_threads=False)  # in order
    table = table.aggregate([(column, "last") for column in others])
    table = table.rename_columns([name.removesuffix("_last") for name in table.column_names])
    return table.select(list(MANIFEST))


def list_pictures(folder: Path, leave_out: Path) -> tuple["pa.Array", list[str]]:
    """List the pictures below a folder at all depths.

    Args:
        folder: hidden files and folders in it are not looked at.
        leave_out: a folder below it whose files are not taken.

    Returns:
        Absolute paths, and those that no manifest can hold, since they are not UTF-8.

    Raises:
        DataError: a folder is missing or unreadable, or there is no picture.
    """
    import pyarrow as pa

    paths: list[str] = []
    unfit: list[str] = []
    chunks = []
    for path in walk_files(folder.resolve(), {}, leave_out):
        if not path.lower().endswith(IMAGE_SUFFIXES):
            continue
        try:
            path.encode()
        except UnicodeEncodeError:
            unfit.append(os.fsencode(path).decode("utf-8", "backslashreplace"))
        else:
            paths.append(path)
        if len(paths) > PART_ROWS:  # an array takes a tenth of a list
            chunks.append(pa.array(paths, pa.large_string()))
            paths = []
    found = pa.concat_arrays([*chunks, pa.array(paths, pa.large_string())])
    if not len(found) and not unfit:
        raise DataError(f"{folder}: no pictures ({', '.join(IMAGE_SUFFIXES)}) in this folder")
    return found, unfit


def predict_distributed(
    saved_model: str | Path,
    folder: str | Path,
    output: str | Path,
    actors: int | None = None,
    threads: int = 1,
    batch_size: int = DEFAULT_BATCH_SIZE,
    address: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Segment the pictures of a folder by actors that Ray Data feeds.

    Pictures that have a result are left alone: at once where the manifest knows the file by its
    size and time, else after it was read. On a cluster all machines must see the three folders
    under the same names.

    Args:
        saved_model: folder of a SavedModel that `alignseg_tf.export` wrote.
        folder: holds the pictures, at all depths.
        output: is made if it is not there.
        actors: processes with a copy of the model each; by default one for `threads` cores.
        threads: that TensorFlow has in an actor.
        batch_size: pictures of one size that go through the network at a time.
        address: of a Ray cluster, or `auto`; None for this machine alone. Where Ray runs in this
            process already, it is used.
        progress: called with (done, total).

    Raises:
        ImportError: Ray Data is not installed.
        ValueError: an argument is wrong, or there is no such model or no picture.
        OSError: results cannot be written.
    """
    _import_ray()
    import pyarrow as pa

    for name, value in (("actors", actors), ("threads", threads), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1. Received: {name}={value}")
    started = time.monotonic()
    saved_model, output = Path(saved_model).resolve(), Path(output).resolve()
    remove_leftovers(output, below=True)
    model = _describe_model(saved_model, output)
    paths, unfit = list_pictures(Path(folder), output)
    known = read_manifest(output, model).select(["path", "sha256", "bytes", "mtime_ns"])
    table = pa.table({"path": paths}).join(known, "path", join_type="left outer")
    table = table.append_column("row", pa.array(np.arange(len(table))))

    summary = Summary(threads, Counter(failed=len(unfit)))
    manifest = _Manifest(output, model)
    done = np.zeros(len(table), bool)
    total = len(table) + len(unfit)
    try:
        for path in unfit:
            manifest.add({"path": path, "status": "failed", "reason": "the name is not UTF-8"})
        with _ray(actors, threads, address) as actors:
            rows = len(table) // (actors * BLOCKS_PER_ACTOR)
            rows = max(min(rows, MAX_BLOCK_ROWS), min(batch_size, MAX_BLOCK_ROWS))
            # What an actor died with goes on picture by picture, so that one alone is to blame.
            # Tasks that wait at an actor die with it: the second time none does.
            for size, ahead in ((rows, None), (1, 1)):
                left = table if not done.any() else table.filter(pa.array(~done))
                arguments = (saved_model, output, model, batch_size)
                for row in _segmented(left, size, arguments, actors, threads, ahead):
                    if row["status"] == "stopped":
                        raise OSError(row["reason"])
                    if done[row["row"]]:
                        continue
                    done[row["row"]] = True
                    manifest.add(row)
                    kind = "kept" if row["status"] == "known" else row["status"]
                    summary.counts[kind] += 1
                    summary.steps.update({step: row[step] or 0.0 for step in STEPS})
                    if progress is not None:
                        progress(summary.counts.total(), total)
                if done.all():
                    break
        for path in table.filter(pa.array(~done))["path"].to_pylist():
            reason = f"the process that segmented it died {MAX_DEATHS + 1} times"
            manifest.add({"path": path, "status": "failed", "reason": reason})
            summary.counts["failed"] += 1
    finally:
        manifest.flush()
    summary.seconds = time.monotonic() - started
    return summary


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or it warns
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray.data
    except ImportError as error:
        raise ImportError(
            f"predict-distributed needs Ray Data ({error}): pip install 'alignseg_tf[batch]'"
        ) from error
    return ray


def _describe_model(saved_model: Path, output: Path) -> str:
    """Return the fingerprint of a model, and write down what its class ids mean."""
    from alignseg_tf.networks import LABEL_SPACE_FILE

    if not (saved_model / "saved_model.pb").is_file():
        raise ValueError(f"{saved_model}: no SavedModel; expected a folder that `export` wrote")
    if not (saved_model / LABEL_SPACE_FILE).is_file():
        raise ValueError(f"{saved_model}: {LABEL_SPACE_FILE} with the names of classes is missing")
    model = fingerprint(saved_model)
    classes = json.loads((saved_model / LABEL_SPACE_FILE).read_text(encoding="utf-8"))
    description = json.dumps({"fingerprint": model, **classes}, indent=1)
    write_text(output / "models" / f"{model[:FINGERPRINT_LENGTH]}.json", description)
    return model


@contextmanager
def _ray(actors: int | None, threads: int, address: str | None) -> Iterator[int]:
    """Start Ray, or reach it, without its talk; yield the number of actors."""
    ray = _import_ray()
    started = not ray.is_initialized()
    if started:
        cores = None
        if address is None:
            cores = max(os.cpu_count() or 1, (actors or 1) * threads)
        environment = {
            "TF_NUM_INTRAOP_THREADS": str(threads),
            "TF_NUM_INTEROP_THREADS": "1",
            "OMP_NUM_THREADS": str(threads),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        with silent_stderr():  # it says there that it will say nothing
            ray.init(
                address=address or "local",
                num_cpus=cores,
                include_dashboard=False if address is None else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": environment},
            )
    try:
        yield actors or max(1, int(ray.cluster_resources()["CPU"]) // threads)
    finally:
        if started:
            ray.shutdown()


def _segmented(
    table: "pa.Table",
    rows: int,
    arguments: tuple[Path, Path, str, int],
    actors: int,
    threads: int,
    ahead: int | None,
) -> Iterator[dict[str, Any]]:
    """Yield what became of pictures, in the order in which they are done.

    Pictures with which an actor died too often are left out.

    Args:
        table: as `read_pictures` takes it.
        rows: that a task reads, and an actor gets, at a time.
        arguments: of `Segmenter`.
        actors: how many.
        threads: cores of an actor.
        ahead: tasks that are sent to an actor at a time; None leaves that to Ray.
    """
    ray = _import_ray()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    _, output, model, _ = arguments
    blocks = [table.slice(start, rows).combine_chunks() for start in range(0, len(table), rows)]
    dataset = (
        ray.data.from_arrow(blocks)
        .map_batches(
            read_pictures,
            batch_size=None,
            batch_format="pyarrow",
            fn_args=(output, model),
            num_cpus=READING_CPUS,
        )
        .map_batches(
            Segmenter,
            batch_size=None,
            batch_format="pyarrow",
            fn_constructor_args=arguments,
            compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=ahead),
            num_cpus=threads - READING_CPUS,
            max_restarts=-1,
            max_task_retries=MAX_DEATHS,
        )
    )
    try:
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from batch.to_pylist()
    except ray.exceptions.RayError as error:
        raise ValueError(f"Ray has given up: {error}") from error


def add_distributed_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `predict-distributed`."""
    parser.add_argument("model", type=Path, help="folder of a SavedModel, e.g. savedmodels/NAME/1")
    parser.add_argument("folder", type=Path, help="folder of pictures, searched at all depths")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--actors", type=int, help="processes with a copy of the model (all cores)")
    parser.add_argument(
        "--threads", type=int, default=1, help="of TensorFlow in each of them (%(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=DEFAULT_BATCH_SIZE,
        help="pictures of one size that go through the network at a time (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--address", help="of a Ray cluster, or auto (this machine alone)")


def distributed_from_arguments(arguments: argparse.Namespace) -> int:
    """Run `predict-distributed`; return 1 if some pictures have no result.

    Raises:
        ValueError: an argument is wrong.
    """
    summary = predict_distributed(
        arguments.model,
        arguments.folder,
        arguments.output,
        arguments.actors,
        arguments.threads,
        arguments.batch_size,
        arguments.address,
        counter("predicting"),
    )
    print(summary.text())
    if failed := summary.counts["failed"]:
        print(f"error: {failed} failed; see {arguments.output / 'failures'}", file=sys.stderr)
    return 1 if failed else 0

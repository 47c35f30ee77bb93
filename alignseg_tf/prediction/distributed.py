"""Segment millions of images on the cores of one machine or of a Ray cluster.

The output folder holds `ab/cd/SHA256-MODEL_classes.png`, where SHA256 is of the image's file and
starts with `abcd`, and MODEL starts the model's fingerprint; a row an image in `outcomes/RUN.csv`;
and `models/MODEL.json`. Names of results depend only on content, so that several runs may share a
folder.
"""

import json
import logging
import os
import secrets
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from alignseg_tf.data.listing import IMAGE_SUFFIXES, DataError, walk_files
from alignseg_tf.prediction.batch import read_image
from alignseg_tf.prediction.outcomes import Outcome, OutcomeLog
from alignseg_tf.system.files import atomic_path, remove_leftovers, write_text
from alignseg_tf.system.fingerprints import fingerprint
from alignseg_tf.system.parallel import in_parallel
from alignseg_tf.system.progress import progress_bar
from alignseg_tf.system.quiet import import_tensorflow_quietly, silent_stderr

if TYPE_CHECKING:
    import pyarrow as pa

# Hexadecimal digits of the model's fingerprint in the names of results.
FINGERPRINT_LENGTH = 16
# Images in a block: at most, and a sixteenth of an actor's share.
MAX_BLOCK_ROWS, BLOCKS_PER_ACTOR = 256, 16
# Retries of a block with which an actor died, before its images are tried separately.
MAX_DEATHS = 3
STOPPED = "stopped"  # outcome of an image whose result cannot be written


def result_path(sha256: str, model: str) -> str:
    """Return the path of the result of an image and a model, from the fingerprints of both."""
    return f"{sha256[:2]}/{sha256[2:4]}/{sha256}-{model[:FINGERPRINT_LENGTH]}_classes.png"


class Segmenter:
    """Read, segment and write images: a Ray actor, which loads the model once."""

    def __init__(self, saved_model: Path, output: Path, model: str, batch_size: int):
        import_tensorflow_quietly()
        from alignseg_tf.prediction.predictor import Predictor

        self.predictor = Predictor(saved_model)
        self.output, self.model, self.batch_size = output, model, batch_size

    def __call__(self, table: "pa.Table") -> "pa.Table":
        """Take `row`, a number, and `path`, bytes; return `row`, and `outcome` as JSON."""
        import pyarrow as pa

        loaded = in_parallel(self._load, table["path"].to_pylist(), ahead=2, workers=1)
        outcomes: list[Outcome] = []
        limit = self.predictor.protocol.largest_whole or 2**63
        for size, items in groupby(loaded, lambda item: item[1].shape[:2]):
            most = max(1, min(self.batch_size, limit // max(1, size[0] * size[1])))
            while group := list(islice(items, most)):
                outcomes += self._segment(group) if all(size) else [outcome for outcome, _ in group]
        texts = [json.dumps(asdict(outcome)) for outcome in outcomes]
        return pa.table({"row": table["row"], "outcome": pa.array(texts, pa.large_string())})

    def _load(self, path: bytes) -> tuple[Outcome, np.ndarray]:
        """Read an image, without pixels if it is kept or skipped."""

        def results(sha256: str) -> tuple[list[str], bool]:
            result = result_path(sha256, self.model)
            return [result], (self.output / result).exists()

        outcome, image = read_image(Path(os.fsdecode(path)), results)
        return outcome, np.empty((0, 0, 3), np.uint8) if image is None else image

    def _segment(self, group: Sequence[tuple[Outcome, np.ndarray]]) -> list[Outcome]:
        """Segment images of one size and write the results."""
        from tensorflow.errors import OpError

        started = time.perf_counter()
        images = [image for _, image in group]
        try:
            if len(images) == 1:
                class_maps = [self.predictor.class_map(images[0])]
            else:
                network: Any = self.predictor.network  # a SavedModel, which takes batches
                class_maps = list(network.class_maps(np.stack(images)))
        except (ValueError, OpError) as error:
            if len(group) == 1:
                return [group[0][0].skipped(str(error))]
            return [outcome for item in group for outcome in self._segment([item])]
        seconds = (time.perf_counter() - started) / len(group)
        outcomes = [replace(outcome, seconds=seconds) for outcome, _ in group]
        for index, class_map in enumerate(class_maps):
            try:
                with atomic_path(self.output / outcomes[index].files[0]) as path:
                    Image.fromarray(class_map).save(path)
            except OSError as error:  # the next one would fail, too
                outcomes[index] = replace(outcomes[index], outcome=STOPPED, message=str(error))
        return outcomes


def predict_distributed(
    saved_model: str | Path,
    folder: str | Path,
    output: str | Path,
    actors: int | None = None,
    threads: int = 1,
    batch_size: int = 1,
    address: str | None = None,
) -> OutcomeLog:
    """Segment the images of a folder by actors that Ray Data feeds.

    Skip an image whose result exists. All machines must see the folders under the same names.

    Args:
        saved_model: folder of a SavedModel that `alignseg_tf.export` wrote.
        folder: holds the images, at all depths.
        output: folder for the results.
        actors: processes with a copy of the model each; by default one for `threads` cores.
        threads: TensorFlow threads of an actor.
        batch_size: number of images of one size in a batch.
        address: of a Ray cluster, or `auto`; None for this machine only.

    Returns:
        The log of this run: its `counts`, and the `path` of its file.

    Raises:
        ImportError: Ray Data is not installed.
        ValueError: an argument is wrong, or the model or images are missing.
        OSError: results cannot be written.
    """
    for name, value in (("actors", actors), ("threads", threads), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1. Received: {name}={value}")
    _import_ray(address)
    saved_model, output = Path(saved_model).resolve(), Path(output).resolve()
    remove_leftovers(output, below=True)
    model = _describe_model(saved_model, output)
    table = _image_table(Path(folder).resolve(), output)
    arguments = (saved_model, output, model, batch_size)
    run = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(4)}"
    with OutcomeLog(output / "outcomes" / f"{run}.csv") as log, _ray(actors, threads, address) as n:
        outcomes = _outcomes(table, arguments, n, threads)
        for outcome in progress_bar(outcomes, "predicting", len(table)):
            if outcome.outcome == STOPPED:
                raise OSError(outcome.message)
            log.add(outcome)
    return log


def _image_table(folder: Path, output: Path) -> "pa.Table":
    """Find the images of a folder, as `row` and `path`."""
    import pyarrow as pa

    found = walk_files(folder, {}, output)
    images = (os.fsencode(path) for path in found if path.lower().endswith(IMAGE_SUFFIXES))
    if not (paths := pa.array(images, pa.large_binary())):
        raise DataError(f"{folder}: no images ({', '.join(IMAGE_SUFFIXES)}) in this folder")
    return pa.table({"row": np.arange(len(paths)), "path": paths})


def _outcomes(table: "pa.Table", arguments: tuple, actors: int, threads: int) -> Iterator[Outcome]:
    """Yield the outcomes of a table's images in the order of completion.

    Ray drops a block with which actors died too often. Try its images one by one then, and one at
    an actor at a time, so that none dies with another.
    """
    import pyarrow as pa

    done = np.zeros(len(table), bool)
    batch_size = arguments[-1]
    size = min(MAX_BLOCK_ROWS, max(len(table) // (actors * BLOCKS_PER_ACTOR), batch_size))
    for rows, ahead in ((size, None), (1, 1)):
        left = table.filter(pa.array(~done))
        blocks = [left.slice(i, rows).combine_chunks() for i in range(0, len(left), rows)]
        for row, outcome in _segmented(blocks, arguments, actors, threads, ahead):
            done[row] = True
            yield outcome
        if done.all():
            return
    for path in table.filter(pa.array(~done))["path"].to_pylist():
        message = f"the process that segmented it died {MAX_DEATHS + 1} times"
        yield Outcome(os.fsdecode(path), "skipped", message=message)


def _segmented(
    blocks: list["pa.Table"], arguments: tuple, actors: int, threads: int, ahead: int | None
) -> Iterator[tuple[int, Outcome]]:
    """Yield row and outcome of images when done; `ahead` blocks wait at an actor."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    results = ray.data.from_arrow(blocks).map_batches(
        Segmenter,
        batch_size=None,
        batch_format="pyarrow",
        fn_constructor_args=arguments,
        compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=ahead),
        num_cpus=threads,
        max_restarts=-1,
        max_task_retries=MAX_DEATHS,
    )
    try:
        for result in results.iter_rows():
            content = json.loads(result["outcome"])
            yield result["row"], Outcome(**{**content, "files": tuple(content["files"])})
    except ray.exceptions.RayError as error:
        raise ValueError(f"Ray has given up: {error}") from error


def _import_ray(address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or it warns
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address is None:  # Ray then listens on 127.0.0.1 only, on every system
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray.data  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"predict-distributed needs Ray Data ({error}): pip install 'alignseg_tf[batch]'"
        ) from error


def _describe_model(saved_model: Path, output: Path) -> str:
    """Return the fingerprint of a model, and write the names of its classes."""
    from alignseg_tf.prediction.saved_networks import LABEL_SPACE_FILE

    for name in ("saved_model.pb", LABEL_SPACE_FILE):
        if not (saved_model / name).is_file():
            raise ValueError(f"{saved_model}: no {name}; expected a folder that `export` wrote")
    model = fingerprint(saved_model)
    classes = json.loads((saved_model / LABEL_SPACE_FILE).read_text(encoding="utf-8"))
    description = json.dumps({"fingerprint": model, **classes}, indent=1)
    write_text(output / "models" / f"{model[:FINGERPRINT_LENGTH]}.json", description)
    return model


@contextmanager
def _ray(actors: int | None, threads: int, address: str | None) -> Iterator[int]:
    """Start or reach Ray without its log; yield the number of actors."""
    import ray

    started = not ray.is_initialized()
    if started:
        cores = max(os.cpu_count() or 1, (actors or 1) * threads) if address is None else None
        environment = {"TF_NUM_INTEROP_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
        environment |= dict.fromkeys(("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS"), str(threads))
        with silent_stderr():
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

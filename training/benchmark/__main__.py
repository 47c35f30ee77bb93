"""Measure speed and memory: one subcommand for each question."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from alignseg_tf.commands.options import add_overwrite_argument
from alignseg_tf.system.console import command_output
from alignseg_tf.system.environment import machine, versions
from alignseg_tf.system.files import check_file, has_keys, write_text
from alignseg_tf.system.processor import prepare_processor
from training.benchmark import inputs, memory, serving_load, speed

MEASUREMENTS = {
    "input": (inputs, "the share of a training step that waits for data"),
    "memory": (memory, "the memory that evaluating an image takes"),
    "speed": (speed, "forms of a model, also against another implementation"),
    "serving": (serving_load, "a server under good, bad and hostile requests, and its end"),
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m training.benchmark", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="WHAT")
    for name, (module, help) in MEASUREMENTS.items():
        command = commands.add_parser(name, help=help, allow_abbrev=False)
        module.add_arguments(command)
        command.add_argument("--json", type=Path, help="file to write the result to")
        add_overwrite_argument(command)
        command.set_defaults(measure=module.measure)
    return parser


def _is_result(path: Path) -> bool:
    return has_keys(path, "load_before", "machine", "versions")


@command_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parsed = build_parser().parse_args(arguments)
    prepare_processor()
    load = os.getloadavg()[0]
    try:
        if parsed.json is not None:
            check_file(parsed.json, "training.benchmark", _is_result, parsed.overwrite)
        result, text = parsed.measure(parsed)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    where = machine()
    print(f"\n{text}")
    print(
        f"{where['cores']} cores of {where['cpu']}, {', '.join(where['gpus']) or 'no GPU'}, "
        f"load {load:.1f} before the start; "
        + ", ".join(f"{name} {version}" for name, version in versions().items())
    )
    if parsed.json is not None:
        record = result | {"load_before": load, "machine": where, "versions": versions()}
        write_text(parsed.json, json.dumps(record, indent=1))
    return 1 if result.get("problems") else 0


if __name__ == "__main__":
    sys.exit(main())

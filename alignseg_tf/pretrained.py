"""Trained models that come with the package, by name."""

from pathlib import Path

FOLDER = Path(__file__).parent / "weights"


def pretrained_names() -> list[str]:
    """Return the names of the trained models that come with the package."""
    files = FOLDER.glob("*.keras")
    return sorted(path.stem for path in files if not path.name.startswith("."))  # half written


def pretrained_file(name: str) -> Path:
    """Return the `.keras` file of a trained model that comes with the package.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in pretrained_names():
        raise ValueError(
            f"no trained model {name!r} comes with the package; there are: "
            f"{', '.join(pretrained_names()) or 'none'}"
        )
    return FOLDER / f"{name}.keras"


def model_path(path: str | Path) -> Path:
    """Return a path, or the file of a trained model of the package if `path` is only its name.

    A file or folder of that name comes first.
    """
    path = Path(path)
    if str(path) in pretrained_names() and not path.exists():
        return pretrained_file(str(path))
    return path

"""How well the borders between classes are found, counted exactly, in NumPy.

Shape legend
    H, W   height and width of an image, in pixels
    n      classes
    D      distances

A boundary pixel is a labelled pixel that has a labelled pixel of another class to its left, right,
top or bottom; each border so has two rows of them, one a class. Where a label is ignored there is
no border: neither against it, nor inside. Distances are Euclidean, from pixel centre to pixel
centre.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from alignseg_tf.data.label_space import IGNORE

# Images are counted in bands of rows of so many pixels, since the arrays in between are larger.
BAND_PIXELS = 2**22
# What is farther than the largest distance asked for.
_FAR = np.iinfo(np.int32).max


def row_bands(height: int, width: int, margin: int = 0) -> Iterator[tuple[slice, slice]]:
    """Divide an image into bands of rows.

    Args:
        height: of the image.
        width: of the image.
        margin: rows that are needed above and below a band.

    Yields:
        The rows with their margins, in the image; and the band itself, within them.
    """
    rows = max(1, BAND_PIXELS // max(1, width))
    for first in range(0, height, rows):
        last = min(first + rows, height)
        top = max(0, first - margin)
        yield slice(top, min(last + margin, height)), slice(first - top, last - top)


def boundary_classes(class_map: np.ndarray) -> np.ndarray:
    """Return the class of each boundary pixel, and `IGNORE` elsewhere.

    Args:
        class_map: uint8 [H, W], `IGNORE` where there is no class.

    Returns:
        uint8 [H, W].

    Example:
        >>> boundary_classes(np.array([[0, 0, 1, 1, 255, 2]], np.uint8)).tolist()
        [[255, 0, 1, 255, 255, 255]]
    """
    at_boundary = np.zeros(class_map.shape, bool)
    for first, second in (
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[:-1], np.s_[1:]),
    ):
        a, b = class_map[first], class_map[second]
        differs = (a != b) & (a != IGNORE) & (b != IGNORE)
        at_boundary[first] |= differs
        at_boundary[second] |= differs
    return np.where(at_boundary, class_map, np.uint8(IGNORE))


def _disc(radius: int) -> list[tuple[int, int, int]]:
    """Return (squared distance, dy, dx) of the pixels of a disc, the farthest first."""
    steps = range(-radius, radius + 1)
    disc = [(dy * dy + dx * dx, dy, dx) for dy in steps for dx in steps]
    return sorted((cell for cell in disc if cell[0] <= radius**2), reverse=True)


def _nearest_match(
    boundary: np.ndarray, other: np.ndarray, radius: int, band: slice
) -> tuple[np.ndarray, np.ndarray]:
    """Return the squared distance of each pixel of one boundary to its class in the other.

    Args:
        boundary: from `boundary_classes`, [H, W].
        other: likewise.
        radius: what is farther is `_FAR`.
        band: rows of the boundary's pixels.

    Returns:
        Their classes, uint8 [number of pixels], and distances, int32.
    """
    y, x = np.nonzero(boundary[band] != IGNORE)
    classes = boundary[band][y, x]
    y += band.start
    padded = np.pad(other, radius, constant_values=IGNORE)
    place = (y + radius) * padded.shape[1] + x + radius
    flat, nearest = padded.ravel(), np.full(len(y), _FAR, np.int32)
    for squared, dy, dx in _disc(radius):  # nearer ones overwrite
        nearest[flat[place + (dy * padded.shape[1] + dx)] == classes] = squared
    return classes, nearest


def boundary_counts(
    truth: np.ndarray, predicted: np.ndarray, num_classes: int, distances: Sequence[int]
) -> np.ndarray:
    """Count the boundary pixels of each class, and those that the other map confirms.

    A boundary pixel is confirmed if the other map has a boundary pixel of the same class at most
    `distance` pixels away. Predictions count only where there is a label.

    Args:
        truth: class ids, uint8 [H, W], `IGNORE` where there is no label.
        predicted: class ids, uint8 [H, W].
        num_classes: n.
        distances: whole pixels, at least 1.

    Returns:
        int64 [D, n, 4]: predicted boundary pixels, those of them that are confirmed, true boundary
        pixels, those of them that are confirmed.
    """
    radius = max(distances)
    counts = np.zeros((len(distances), num_classes, 4), np.int64)
    for rows, band in row_bands(len(truth), truth.shape[1], radius + 1):
        labelled = np.where(truth[rows] == IGNORE, np.uint8(IGNORE), predicted[rows])
        found, true = boundary_classes(labelled), boundary_classes(truth[rows])
        for place, (own, other) in enumerate(((found, true), (true, found))):
            classes, nearest = _nearest_match(own, other, radius, band)
            counts[:, :, 2 * place] += np.bincount(classes, minlength=num_classes)
            for index, distance in enumerate(distances):
                confirmed = classes[nearest <= distance**2]
                counts[index, :, 2 * place + 1] += np.bincount(confirmed, minlength=num_classes)
    return counts


def squared_distance_to_border(truth: np.ndarray, radius: int) -> np.ndarray:
    """Return how far each pixel is from the nearest boundary pixel of another class, squared.

    Args:
        truth: uint8 [H, W], `IGNORE` where there is no label.
        radius: in whole pixels.

    Returns:
        int32 [H, W]; a very large number beyond the radius and where there is no label.
    """
    boundary = boundary_classes(truth)
    y, x = np.nonzero(boundary != IGNORE)
    classes = boundary[y, x]
    padded = np.pad(truth, radius, constant_values=IGNORE)
    width = padded.shape[1]
    place = (y + radius) * width + x + radius
    flat, distance = padded.ravel(), np.full(padded.size, _FAR, np.int32)
    for squared, dy, dx in _disc(radius):
        target = place + (dy * width + dx)
        there = flat[target]
        distance[target[(there != classes) & (there != IGNORE)]] = squared
    height, width = truth.shape
    return distance.reshape(padded.shape)[radius : radius + height, radius : radius + width]


def trimap_counts(
    truth: np.ndarray, predicted: np.ndarray, num_classes: int, distances: Sequence[int]
) -> np.ndarray:
    """Count the pixels in bands along the true borders.

    The band of a distance holds the labelled pixels that have a boundary pixel of another class
    at most so many pixels away; that of 1 is the boundary pixels themselves.

    Args:
        truth: class ids, uint8 [H, W], `IGNORE` where there is no label.
        predicted: class ids, uint8 [H, W].
        num_classes: n.
        distances: whole pixels, at least 1.

    Returns:
        int64 [D, n, 3]: pixels that are right, that truth gives the class, that the prediction
        gives it.
    """
    radius = max(distances)
    counts = np.zeros((len(distances), num_classes, 3), np.int64)
    for rows, band in row_bands(len(truth), truth.shape[1], radius + 1):
        squared = squared_distance_to_border(truth[rows], radius)[band]
        near = squared <= radius**2
        squared = squared[near]
        true_classes, found_classes = (x[rows][band][near] for x in (truth, predicted))
        for index, distance in enumerate(distances):
            inside = squared <= distance**2
            true, found = true_classes[inside], found_classes[inside]
            for place, classes in enumerate((true[true == found], true, found)):
                counts[index, :, place] += np.bincount(classes, minlength=num_classes)
    return counts

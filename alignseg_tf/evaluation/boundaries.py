"""Boundary pixels of class maps, counted exactly, in NumPy.

Shape legend
    H, W   height and width of an image, in pixels
    n      classes
    D      distances

A boundary pixel is a labelled pixel with a labelled pixel of another class to its left, right, top
or bottom. Distances are Euclidean, from pixel centre to pixel centre.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from alignseg_tf.data.label_space import IGNORE

# Pixels in a band of rows; counting needs arrays several times larger.
BAND_PIXELS = 2**22
# Squared distance of pixels beyond the largest distance.
_FAR = np.iinfo(np.int32).max


def row_bands(height: int, width: int, margin: int = 0) -> Iterator[tuple[slice, slice]]:
    """Divide an image into bands of rows.

    Yields:
        The rows of a band with `margin` rows above and below; and the band within them.
    """
    rows = max(1, BAND_PIXELS // max(1, width))
    for first in range(0, height, rows):
        last = min(first + rows, height)
        top = max(0, first - margin)
        yield slice(top, min(last + margin, height)), slice(first - top, last - top)


def boundary_classes(class_map: np.ndarray) -> np.ndarray:
    """Return the class of each boundary pixel, and `IGNORE` elsewhere, uint8 [H, W].

    Args:
        class_map: uint8 [H, W], `IGNORE` where there is no class.

    Example:
        >>> boundary_classes(np.array([[0, 0, 1, 1, 255, 2]], np.uint8)).tolist()
        [[255, 0, 1, 255, 255, 255]]
    """
    at_boundary = np.zeros(class_map.shape, bool)
    for first, second in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        a, b = class_map[first], class_map[second]
        differs = (a != b) & (a != IGNORE) & (b != IGNORE)
        at_boundary[first] |= differs
        at_boundary[second] |= differs
    return np.where(at_boundary, class_map, np.uint8(IGNORE))


def _around(
    class_map: np.ndarray, boundary: np.ndarray, radius: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Walk over the discs of `radius` around boundary pixels, the farthest offset first.

    Args:
        class_map: uint8 [H, W].
        boundary: uint8 [H, W], `IGNORE` except at boundary pixels.
        radius: in pixels.

    Yields:
        The squared length of an offset, and for each boundary pixel the target (an index into the
        flattened map with a margin of `radius`) and the class there.
    """
    padded = np.pad(class_map, radius, constant_values=IGNORE)
    y, x = np.nonzero(boundary != IGNORE)
    place, flat = (y + radius) * padded.shape[1] + x + radius, padded.ravel()
    steps = range(-radius, radius + 1)
    disc = sorted(((dy * dy + dx * dx, dy, dx) for dy in steps for dx in steps), reverse=True)
    for squared, dy, dx in disc:
        if squared <= radius**2:
            target = place + (dy * padded.shape[1] + dx)
            yield squared, target, flat[target]


def boundary_counts(
    truth: np.ndarray, predicted: np.ndarray, num_classes: int, distances: Sequence[int]
) -> np.ndarray:
    """Count the boundary pixels of each class, and those that the other map confirms.

    The other map confirms one with a boundary pixel of the same class at most `distance` pixels
    away. Predictions count only where there is a label.

    Args:
        truth: class ids, uint8 [H, W], `IGNORE` where there is no label.
        predicted: class ids, uint8 [H, W].
        num_classes: n.
        distances: whole pixels, at least 1.

    Returns:
        int64 [D, n, 4]: predicted boundary pixels, confirmed ones, true ones, confirmed ones.
    """
    radius = max(distances)
    counts = np.zeros((len(distances), num_classes, 4), np.int64)
    for rows, band in row_bands(len(truth), truth.shape[1], radius + 1):
        labelled = np.where(truth[rows] == IGNORE, np.uint8(IGNORE), predicted[rows])
        found, true = boundary_classes(labelled), boundary_classes(truth[rows])
        for column, own, other in ((0, found, true), (2, true, found)):
            inside = np.full_like(own, IGNORE)
            inside[band] = own[band]
            classes = inside[inside != IGNORE]
            nearest = np.full(len(classes), _FAR, np.int32)
            for squared, _, there in _around(other, inside, radius):  # nearer ones overwrite
                nearest[there == classes] = squared
            counts[:, :, column] += np.bincount(classes, minlength=num_classes)
            for index, distance in enumerate(distances):
                confirmed = classes[nearest <= distance**2]
                counts[index, :, column + 1] += np.bincount(confirmed, minlength=num_classes)
    return counts


def squared_distance_to_border(truth: np.ndarray, radius: int) -> np.ndarray:
    """Return the squared distance of each pixel to the nearest boundary pixel of another class.

    Args:
        truth: uint8 [H, W], `IGNORE` where there is no label.
        radius: largest distance, in whole pixels.

    Returns:
        int32 [H, W]; a very large number beyond the radius and where there is no label.
    """
    boundary = boundary_classes(truth)
    classes = boundary[boundary != IGNORE]
    height, width = truth.shape
    distance = np.full((height + 2 * radius, width + 2 * radius), _FAR, np.int32)
    for squared, target, there in _around(truth, boundary, radius):
        distance.ravel()[target[(there != classes) & (there != IGNORE)]] = squared
    return distance[radius : radius + height, radius : radius + width]


def trimap_counts(
    truth: np.ndarray, predicted: np.ndarray, num_classes: int, distances: Sequence[int]
) -> np.ndarray:
    """Count the pixels in bands along the true borders.

    The band of a distance holds the labelled pixels that have a boundary pixel of another class
    at most that many pixels away. Arguments as in `boundary_counts`.

    Returns:
        int64 [D, n, 3]: pixels of each class that are right, that are true, that are predicted.
    """
    radius = max(distances)
    counts = np.zeros((len(distances), num_classes, 3), np.int64)
    for rows, band in row_bands(len(truth), truth.shape[1], radius + 1):
        squared = squared_distance_to_border(truth[rows], radius)[band]
        for index, distance in enumerate(distances):
            inside = squared <= distance**2
            true, found = (x[rows][band][inside] for x in (truth, predicted))
            for column, classes in enumerate((true[true == found], true, found)):
                counts[index, :, column] += np.bincount(classes, minlength=num_classes)
    return counts

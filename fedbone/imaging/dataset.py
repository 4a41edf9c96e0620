"""Films ready for a model, and the hospital that holds them.

Images: uint8 (N, S, S), bone bright; a batch becomes float32 (B, 1, S, S) in [0, 1] in ``fedbone.model.training``.
Keypoints: float32 (N, K, 3) = x, y, visibility in array pixels (index coordinates); visibility 0 = not labelled,
1 = hidden, 2 = visible, in COCO's order of joints. A joint with visibility 0 never enters a loss or a metric.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

FILM_SHARE = 3 / 8  # the reference length of PCK is at least this share of the film's longer side


@dataclass(frozen=True)
class FilmSet:
    """N films of one hospital.

    images (N, S, S) uint8; keypoints (N, K, 3) float32, the hospital's own labels; spacing_mm (N, 2) float32, x and y
    millimetres per array pixel, NaN where unknown; patients: one pseudonym per film; truth: (N, K, 3) float32 with
    every visible joint, also those the hospital does not label (simulated films only, else None); spacing_kind: what a
    film's millimetres refer to, one of ``fedbone.imaging.frame.SPACING_KINDS`` per film (left out: unknown).
    """

    images: np.ndarray
    keypoints: np.ndarray
    spacing_mm: np.ndarray
    patients: tuple[str, ...]
    truth: np.ndarray | None = None
    spacing_kind: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.spacing_kind:
            object.__setattr__(self, "spacing_kind", ("unknown",) * len(self.images))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labelled(self) -> np.ndarray:
        """(K,) bool: joints that are labelled on at least one film."""
        return (self.keypoints[..., 2] > 0).any(axis=0)

    def take(self, index: np.ndarray) -> FilmSet:
        """The films at ``index`` (any numpy index over films)."""
        truth = None if self.truth is None else self.truth[index]
        patients, kinds = (tuple(np.asarray(t, dtype=object)[index]) for t in (self.patients, self.spacing_kind))
        return FilmSet(self.images[index], self.keypoints[index], self.spacing_mm[index], patients, truth, kinds)


    def to_arrays(self) -> dict[str, np.ndarray]:
        """Named arrays for a file without pickle; ``from_arrays`` reads them."""
        words = {name: np.array(json.dumps(getattr(self, name))) for name in ("patients", "spacing_kind")}
        truth = {} if self.truth is None else {"truth": self.truth}
        return {"images": self.images, "keypoints": self.keypoints, "spacing_mm": self.spacing_mm, **truth, **words}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> FilmSet:
        """The films that ``to_arrays`` wrote. Raises KeyError for a missing array."""
        patients, kinds = (tuple(json.loads(str(arrays[name]))) for name in ("patients", "spacing_kind"))
        images, keypoints, spacing_mm = (arrays[name] for name in ("images", "keypoints", "spacing_mm"))
        return cls(images, keypoints, spacing_mm, patients, arrays.get("truth"), kinds)


@dataclass(frozen=True)
class HospitalData:
    """What one hospital trains and tests on. ``joints``: K names, the same at every hospital of a federation.

    labels: the joints that the hospital declares to label, fixed before anybody looks at films; None: those that its
    training films label, a list that can change with a single patient.
    """

    name: str
    joints: tuple[str, ...]
    train: FilmSet
    test: FilmSet
    labels: tuple[str, ...] | None = None

    @property
    def labelled(self) -> np.ndarray:
        """(K,) bool: joints that this hospital labels (public in the federation)."""
        return self.train.labelled if self.labels is None else np.isin(self.joints, self.labels)


def pool(sets: list[FilmSet]) -> FilmSet:
    """All films of several hospitals in one set: what the law forbids in reality, kept here as the yardstick."""
    truths = [s.truth for s in sets]
    return FilmSet(
        np.concatenate([s.images for s in sets]),
        np.concatenate([s.keypoints for s in sets]),
        np.concatenate([s.spacing_mm for s in sets]),
        tuple(p for s in sets for p in s.patients),
        None if any(t is None for t in truths) else np.concatenate(truths),
        tuple(kind for s in sets for kind in s.spacing_kind),
    )

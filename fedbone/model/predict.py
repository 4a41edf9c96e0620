"""``python -m fedbone predict``: the joints of one film, in its own pixels and millimetres, and a picture of them."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from fedbone.config import COARSEST_PX, PROFILES, WEIGHTS
from fedbone.errors import UserError
from fedbone.files import write_atomic, write_json
from fedbone.imaging.dicom import Film, printable, read_film
from fedbone.imaging.frame import Frame
from fedbone.model.hrnet import HRNet, load_model
from fedbone.model.overlay import NOTICE, Mark, draw
from fedbone.model.training import predict
from fedbone.vectors import sha256, to_vector

# Sure from 0.86 of the confidence of a perfect target. Measured on the 300 simulated test films of notebook 05 (seed 0,
# 128 px) with data/sample/weights, sigma 1.5, where that is 0.40. Sure are 95 % of the joints within 5 % of the
# reference length, 35 % of the others on the film, and 29 % of the joints that the film does not show (hospital A 17 %,
# B 29 %, C 58 %, its knees and ankles 84 %). Of the sure joints 38 % are wrong or absent, of the unsure ones 97 %. At
# 0.35 these are 42 and 99.5 % (99 % of the right joints sure), at 0.45 36 and 85 % (71 %). With sigma 2 it is 0.26, and
# 96, 48 and 29 % are sure.
SURE_SHARE = 0.86
SIGMA_PX = 1.5  # of a checkpoint that does not say
LONGEST_PX = 4096  # of the picture: a stitched film is scaled down to it
SAME_PLACE = 0.02  # of the film's longer side
HEAD = ("nose", "left_eye", "right_eye", "left_ear", "right_ear")  # these do coincide, seen from the side
KINDS = {
    "calibrated": "as PixelSpacingCalibrationType says",
    "object": "at the bone, corrected for the magnification",
    "detector": "at the detector, larger than at the bone by the magnification",
}


@dataclass(frozen=True, slots=True)
class Joint:
    """A joint as found: pixels of the film (index units), millimetres from the film's upper left corner or None."""

    name: str
    x_px: float
    y_px: float
    x_mm: float | None
    y_mm: float | None
    confidence: float
    below_threshold: bool
    on_film: bool


@dataclass(frozen=True, slots=True)
class Findings:
    """The joints of one film, what their millimetres refer to, and by which model (sha256 of its vector)."""

    joints: tuple[Joint, ...]
    rows: int
    cols: int
    spacing_kind: str
    threshold: float
    model_sha256: str
    same_place: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Network:
    """A trained model with what its checkpoint says about it."""

    model: HRNet
    joints: tuple[str, ...]
    size_px: int
    threshold: float


def load_network(path: Path) -> Network:
    """The model of a checkpoint. Raises UserError when it cannot be loaded, or lacks its joints or input size."""
    model, metadata = load_model(path)
    joints, size_px, sigma_px = metadata.get("joints"), metadata.get("size_px"), metadata.get("sigma_px", SIGMA_PX)
    remedy = "Give model.safetensors of `python -m fedbone federate`"
    has_size = isinstance(size_px, int) and size_px > 0 and size_px % COARSEST_PX == 0
    if not isinstance(joints, list) or not has_size or not isinstance(sigma_px, (int, float)) or not sigma_px > 0:
        problem = "it does not say its joints, the size of its input and its targets (joints, size_px, sigma_px)"
        raise UserError(path, problem, remedy)
    if len(joints) != model.config.joints or model.config.in_channels != 1:
        found = f"{len(joints)} names, {model.config.joints} heatmaps, {model.config.in_channels} input channels"
        raise UserError(path, f"it has {found}, expected a heatmap a name and 1 channel", remedy)
    return Network(model, tuple(map(str, joints)), size_px, default_threshold(sigma_px))


def default_threshold(sigma_px: float) -> float:
    """The confidence from which a joint counts as sure, for a network trained on targets of ``sigma_px``.

    A Gaussian has the share erf(1.5 / (sigma sqrt 2))^2 of its mass in the 3 x 3 pixels that the confidence sums.
    """
    return round(SURE_SHARE * math.erf(1.5 / (sigma_px * math.sqrt(2))) ** 2, 2)


def find_joints(path: Path, network: Network, threshold: float) -> tuple[Findings, Film]:
    """What ``network`` finds on the film in a DICOM file, and the film as it read it. Raises UserError."""
    film = read_film(path, network.size_px)
    found = predict(network.model, film.image[None], PROFILES["cpu"])[0]
    if not np.isfinite(found).all():
        raise UserError("--weights", "the network's output is not finite", "Its training diverged: train again")
    frame = film.frame
    xy_px = frame.to_film(found[:, :2])
    joints = tuple(
        _joint(name, xy, float(sure), frame, threshold)
        for name, xy, sure in zip(network.joints, xy_px.tolist(), found[:, 2], strict=True)
    )
    digest = sha256(to_vector(network.model))
    kind = frame.spacing.kind
    return Findings(joints, frame.rows, frame.cols, kind, threshold, digest, same_places(joints, frame)), film


def _joint(name: str, xy_px: Sequence[float], confidence: float, frame: Frame, threshold: float) -> Joint:
    (x, y), mm = xy_px, frame.spacing
    known = mm.kind != "unknown"
    # the corner of the film is half a pixel before the centre of its first pixel
    place_mm = ((x + 0.5) * mm.col_mm, (y + 0.5) * mm.row_mm) if known else (None, None)
    on_film = -0.5 <= x <= frame.cols - 0.5 and -0.5 <= y <= frame.rows - 0.5
    return Joint(name, x, y, *place_mm, confidence, confidence < threshold, on_film)


def same_places(joints: Sequence[Joint], frame: Frame) -> tuple[tuple[str, str], ...]:
    """Pairs of joints, sure but in one place: at most one is right. A network does not learn which joints a film lacks.

    Of the absent joints that a threshold of 0.40 leaves sure, 72 % stand in such a pair, and 44 % of the right ones.
    """
    near = SAME_PLACE * max(frame.rows * frame.pixel_aspect, frame.cols)
    sure = [joint for joint in joints if not joint.below_threshold]
    return tuple(
        (a.name, b.name)
        for a, b in combinations(sure, 2)
        if math.hypot(a.x_px - b.x_px, (a.y_px - b.y_px) * frame.pixel_aspect) < near
        and not (a.name in HEAD and b.name in HEAD)
    )


def picture(path: Path, frame: Frame) -> np.ndarray:
    """The film (rows, cols) uint8, bone bright, at its own resolution up to LONGEST_PX on the longer side."""
    scale = min(1.0, LONGEST_PX / max(frame.rows, frame.cols))
    rows, cols = (max(1, round(side * scale)) for side in (frame.rows, frame.cols))
    aspect = frame.pixel_aspect
    # read_film makes pixels square: large enough for both sides, then back to the film's own, a little softened
    wide = read_film(path, math.ceil(max(rows * aspect, cols) * max(1.0, 1 / aspect)))
    (high, across), (top, left) = wide.frame.inner, wide.frame.offset
    square = wide.image[top : top + high, left : left + across]
    return cv2.resize(square, (cols, rows), interpolation=cv2.INTER_AREA) if square.shape != (rows, cols) else square


def overlay(film: np.ndarray, findings: Findings) -> np.ndarray:
    """The film's picture with its joints drawn in; those beyond its edge are left out."""
    scale = np.array([film.shape[1] / findings.cols, film.shape[0] / findings.rows])
    marks = []
    for joint in findings.joints:
        if joint.on_film:
            x, y = (np.array([joint.x_px, joint.y_px]) + 0.5) * scale - 0.5
            marks.append(Mark(joint.name, float(x), float(y), not joint.below_threshold))
    return draw(film, marks, findings.threshold)


def as_json(findings: Findings) -> dict:
    """The findings as JSON values; model_sha256 is the vector_sha256 of the training's results.json."""
    return {"notice": NOTICE.lower(), **asdict(findings)}


def report(findings: Findings) -> str:
    """One line a joint, then what the figures mean."""
    wide = max(len(printable(joint.name)) for joint in findings.joints)
    lines = [_line(joint, wide, findings) for joint in findings.joints]
    kind = findings.spacing_kind
    if kind != "unknown":
        lines.append(f"mm {kind}: {KINDS[kind]}; from the film's upper left corner")
    lines += [f"same place: {printable(a)} and {printable(b)}; at most one is right" for a, b in findings.same_place]
    lines.append(f"{NOTICE.lower()}; a sure joint can be wrong, above all one that the film does not show")
    return "\n".join(lines)


def _line(joint: Joint, wide: int, findings: Findings) -> str:
    words = f"{printable(joint.name):<{wide}}  x {joint.x_px:7.1f}  y {joint.y_px:7.1f} px  "
    if joint.x_mm is None:
        words += "unknown spacing"
    else:
        words += f"x {joint.x_mm:6.1f}  y {joint.y_mm:6.1f} mm {findings.spacing_kind}"
    words += f"  confidence {joint.confidence:.3f}"
    words += f", below {findings.threshold:.2f}" * joint.below_threshold
    return words + ", beyond the film's edge" * (not joint.on_film)


def _require_new_files(targets: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Raise UserError for a target that is a folder, an input, or named twice: before any work is done."""
    for number, target in enumerate(targets):
        if target.is_dir():
            raise UserError(target, "it is a folder, expected the name of a file", "Name a file in it")
        if any(_is_same(target, other) for other in [*inputs, *targets[:number]]):
            raise UserError(target, "writing it would overwrite another file of this command", "Choose another name")


def _is_same(a: Path, b: Path) -> bool:
    return a.resolve() == b.resolve() or (a.exists() and b.exists() and a.samefile(b))  # a hard link has two paths


def _write(out: Path, png: bytes, json_file: Path | None, findings: Findings) -> None:
    """Both files or neither: the JSON file is written while the picture has its temporary name."""

    def both(file: BinaryIO) -> None:
        file.write(png)
        if json_file:
            with _writing(json_file):
                write_json(json_file, as_json(findings))

    with _writing(out):
        write_atomic(out, both)


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        problem = f"it cannot be written ({error.strerror})"
        raise UserError(target, problem, "Name a file in a folder that you can write to") from error


def main(args: argparse.Namespace) -> int:
    """The ``predict`` command: prints the joints, writes the picture and, where asked for, the JSON file."""
    targets = [path for path in (args.out, args.json) if path]
    weights = args.weights or WEIGHTS / "federated_cpu.safetensors"
    _require_new_files(targets, [args.film, weights])
    network = load_network(weights)
    findings, film = find_joints(args.film, network, network.threshold if args.threshold is None else args.threshold)
    png = cv2.imencode(".png", overlay(picture(args.film, film.frame), findings))[1].tobytes()
    _write(args.out, png, args.json, findings)
    for warning in film.warnings:
        print(f"check: {warning}", file=sys.stderr)
    print(report(findings))
    return 0

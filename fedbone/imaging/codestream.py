"""What a compressed picture says about itself, read before any decoder sees it."""

from __future__ import annotations

from typing import NamedTuple

from fedbone.imaging.refusal import AGAIN, Refusal

_SIZE_AND_STUFF = b"\xff\x4f\xff\x51"  # JPEG 2000: start of codestream and its SIZ marker, ISO/IEC 15444-1 A.5.1
_FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15 of JPEG, SOF55 of JPEG-LS
_END_OF_IMAGE = b"\xff\xd9"  # the same in all three; entropy-coded data cannot contain it


class Codestream(NamedTuple):
    """Rows, columns, bits a sample and samples a pixel that a JPEG, JPEG-LS or JPEG 2000 stream declares."""

    rows: int
    cols: int
    bits: int
    samples: int


def require_match(stream: bytes, rows: int, cols: int, samples: int) -> Codestream | None:
    """What ``stream`` declares, None where no header is found (the decoder will say what is wrong).

    Raises Refusal where it is another picture than the DICOM header promises, or ends before its end: decoders believe
    the stream, take any amount of memory for it, and some return a half-empty picture without a word.
    """
    found = _jpeg_2000(stream) or _jpeg(stream)
    if found is None:
        return None
    if (found.rows or rows, found.cols, found.samples) != (rows, cols, samples):  # JPEG may give its rows later
        problem = f"its compressed picture has {found.rows} x {found.cols} pixels of {found.samples} samples, "
        raise Refusal(problem + f"the header says {rows} x {cols} of {samples}", AGAIN)
    if _END_OF_IMAGE not in stream:
        raise Refusal("it is cut short: its compressed picture has no end", AGAIN)
    return found


def _jpeg_2000(stream: bytes) -> Codestream | None:
    start = stream.find(_SIZE_AND_STUFF, 0, 4096)  # not at 0 inside a JP2 container
    header = stream[start + 8 : start + 43]
    if start < 0 or len(header) < 35:
        return None
    right, bottom, left, top = (int.from_bytes(header[at : at + 4]) for at in (0, 4, 8, 12))
    return Codestream(bottom - top, right - left, (header[34] & 127) + 1, int.from_bytes(header[32:34]))


def _jpeg(stream: bytes) -> Codestream | None:
    if not stream.startswith(b"\xff\xd8"):
        return None
    position = 2
    while position + 10 <= len(stream) and stream[position] == 0xFF:
        marker, length = stream[position + 1], int.from_bytes(stream[position + 2 : position + 4])
        if marker in _FRAME_HEADERS:
            bits, samples = stream[position + 4], stream[position + 9]
            rows, cols = (int.from_bytes(stream[position + at : position + at + 2]) for at in (5, 7))
            return Codestream(rows, cols, bits, samples)
        position += 1 if marker == 0xFF else 2 + length  # any number of fill bytes may precede a marker
    return None

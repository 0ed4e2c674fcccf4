"""Cut the crops of one photo: decode it once, cut every window, encode.

Crops are JPEG with full colour resolution (4:4:4): they are small, and halved colour would be a third of what there is
to see.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg

from augment_cache.annotations.coco import Fault
from augment_cache.annotations.screen import Candidate
from augment_cache.annotations.window import Window
from pipelines.decode import Pixels, decode, read_header, turn_upright
from pipelines.errors import CorruptSampleError

_BACK = {6: 8, 8: 6}
"""The EXIF orientation that undoes another; all others undo themselves."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What became of one candidate: a file of so many bytes, or a fault."""

    candidate: Candidate
    result: int | Fault


class OpenPhoto(NamedTuple):
    """A decoded photo."""

    upright: Pixels
    """uint8 [height, width, 3], as people see it."""
    orientation: int
    """The EXIF orientation that was undone, 1 to 8."""


def by_photo(candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    """Candidates that share a file, so that it is decoded once; sorted by path."""
    groups: defaultdict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        groups[candidate.photo.name].append(candidate)
    return [groups[name] for name in sorted(groups)]


def crop_name(annotation_id: int) -> str:
    """File name of a crop."""
    return f"a{annotation_id:06d}.jpg"


def cut_photo(candidates: Sequence[Candidate], folder: Path, quality: int) -> list[Cut]:
    """Cut all crops of one photo into a folder.

    Args:
        candidates: At least one, all of the same photo.
        folder: Where the crops go, each under its `crop_name`.
        quality: JPEG quality, 1 to 100.

    Returns:
        One result per candidate. A photo that cannot be read is a fault of each of them, not an exception.

    Raises:
        OSError: A crop cannot be written.
    """
    photo = open_photo(candidates[0].path)
    return [
        Cut(candidate=candidate, result=_write(candidate, cut_candidate(candidate, photo), folder, quality))
        for candidate in candidates
    ]


def _write(candidate: Candidate, crop: Pixels | Fault, folder: Path, quality: int) -> int | Fault:
    if isinstance(crop, Fault):
        return crop
    data = simplejpeg.encode_jpeg(crop, quality=quality, colorspace="RGB", colorsubsampling="444", fastdct=False)
    return (folder / crop_name(candidate.annotation.annotation_id)).write_bytes(data)


def open_photo(path: Path) -> OpenPhoto | Fault:
    """Decode a photo; one that cannot be read is a fault, not an exception."""
    try:
        data = path.read_bytes()
        header = read_header(data)
        return OpenPhoto(decode(data, header=header), header.orientation)
    except (CorruptSampleError, OSError) as error:
        return Fault("unreadable_photo", " ".join(str(error).split()))


def cut_candidate(candidate: Candidate, photo: OpenPhoto | Fault) -> Pixels | Fault:
    """What a candidate shows of its photo.

    Args:
        candidate: What to cut.
        photo: What `open_photo` returned for the candidate's path.

    Returns:
        uint8 [rows, columns, 3], upright and contiguous; may share memory with the photo. Or the photo's fault, or that
        it has another size than the annotations say.
    """
    if isinstance(photo, Fault):
        return photo
    frame = (candidate.photo.height, candidate.photo.width)
    crop = cut_window(photo.upright, photo.orientation, frame, candidate.window)
    if crop is not None:
        return crop
    found, said = f"{photo.upright.shape[1]} x {photo.upright.shape[0]}", f"{frame[1]} x {frame[0]}"
    return Fault("size_mismatch", f"the photo has {found} px, the annotations say {said}")


def cut_window(upright: Pixels, orientation: int, frame: tuple[int, int], window: Window) -> Pixels | None:
    """Cut a window out of a photo, in the frame its annotations were drawn in.

    Some tools draw boxes on the photo as people see it, others on the pixels as they are stored, before the EXIF
    orientation. The sizes tell which, and where they tell nothing (half turns, mirrors, square photos) the upright
    photo is meant.

    Args:
        upright: uint8 [height, width, 3], the photo as people see it.
        orientation: Its EXIF orientation, 1 to 8.
        frame: (height, width) of the frame that the window is measured in, in px.
        window: What to cut.

    Returns:
        uint8 [rows, columns, 3], upright and contiguous; None if the frame is neither the upright nor the stored one.
    """
    if upright.shape[:2] == frame:
        return np.ascontiguousarray(_slice(upright, window))
    if orientation >= 5 and upright.shape[1::-1] == frame:
        stored = turn_upright(upright, _BACK.get(orientation, orientation))
        return np.ascontiguousarray(turn_upright(np.ascontiguousarray(_slice(stored, window)), orientation))
    return None


def _slice(pixels: Pixels, window: Window) -> Pixels:
    return pixels[window.y : window.y + window.height, window.x : window.x + window.width]

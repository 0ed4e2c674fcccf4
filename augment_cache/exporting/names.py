"""What exported files are called. Class names and sources stand in data files, so nothing in them is taken on trust."""

import re
from pathlib import PurePosixPath

STEM_BYTES = 100
"""Bytes of UTF-8 that are kept of a source's name: with id and copy the name stays below what any file system takes."""
CLASS_BYTES = 255
"""The longest folder name of the usual file systems, in bytes of UTF-8."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_RESERVED = re.compile(r'[<>:"/\\|?*\ud800-\udfff]')


def key(sample_id: int, copy: int) -> str:
    """The name of a row: its sample id as 16 hexadecimal digits, `_`, the number of the copy; no dot in it."""
    return f"{sample_id:016x}_{copy}"


def stem(source: str) -> str:
    """The part of a file name that tells people where a row comes from.

    Args:
        source: Path of the source file, one that `source_fault` finds nothing wrong with.

    Returns:
        The source's name without folders and suffix, at most `STEM_BYTES` long; characters that some file system
        refuses, bytes that were no UTF-8, and leading dots, which would hide the file, become `_`. The rest stays.
    """
    text = _RESERVED.sub("_", PurePosixPath(source).stem)
    text = "_" * (len(text) - len(text.lstrip("."))) + text.lstrip(".")
    return text.encode("utf-8")[:STEM_BYTES].decode("utf-8", "ignore") or "image"


def source_fault(source: str) -> str:
    """What is wrong with a source, and the cure; "" if nothing is."""
    path = PurePosixPath(source)
    if path.is_absolute():
        return "is an absolute path, which build never writes; do not trust this cache"
    if ".." in path.parts:
        return "climbs out of its folder, which build never writes; do not trust this cache"
    if _CONTROL.search(source):
        return "holds a control character; rename the file and build the cache again"
    return ""


def class_fault(name: str) -> str:
    """What keeps a class from being a folder, and the cure; "" if nothing does."""
    if not name or "/" in name or "\\" in name or _CONTROL.search(name):
        return "cannot be the name of a folder; do not trust this cache, or rename the class and build it again"
    if name.startswith("."):
        return "begins with a dot, and readers skip hidden folders; rename the class and build the cache again"
    try:
        length = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        return "cannot be written as UTF-8; rename the class and build the cache again"
    if length > CLASS_BYTES:
        return f"is {length} bytes long, and folder names end at {CLASS_BYTES}; rename the class and build again"
    return ""

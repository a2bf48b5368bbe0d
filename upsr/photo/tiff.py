"""EXIF and IPTC of TIFF files: libvips neither reads nor writes the first, and cuts the second."""

import io
import struct
import warnings
from typing import BinaryIO

from PIL import Image, TiffImagePlugin
from PIL.ExifTags import IFD, Base

SIGNATURES = (b"II*\0", b"MM\0*")
DESCRIPTIONS = (Base.ImageDescription, Base.Make, Base.Model, Base.Software, Base.DateTime, Base.Artist, Base.Copyright)
"""What the main directory of a file says of the image; its other tags say how the pixels are stored."""
EXIF = b"Exif\0\0"  # the starts of the blocks that JPEG holds
IPTC = b"Photoshop 3.0\0"
RESOURCES = 34377  # Photoshop's tag, which holds IPTC
LINKS = (IFD.Interop, IFD.MakerNote)  # hold places in the file of before
ENTRY = 12  # bytes
DAMAGE = (OSError, SyntaxError, ValueError, TypeError, AttributeError, struct.error)  # that Pillow raises of such EXIF


def read_blocks(data: bytes) -> tuple[bytes | None, bytes | None]:
    """EXIF and IPTC of a TIFF file's bytes, as the blocks that JPEG holds.

    None for each in other formats, and where there is none or a damaged one: the image itself is whole, as its decoder
    found.
    """
    if not data.startswith(SIGNATURES):
        return None, None
    try:
        described, resources = _described(io.BytesIO(data))
        return described.tobytes() if described else None, IPTC + resources if resources else None
    except DAMAGE:
        return None, None


def write_blocks(file: BinaryIO, exif: bytes | None, iptc: bytes | None, width: int, height: int) -> None:
    """Puts blocks that JPEG holds into a TIFF file, open for reading and writing, with the image's new size.

    A main directory at the file's end replaces the one of before. BigTIFF and a damaged EXIF block change nothing.
    """
    file.seek(0)
    header = file.read(8)
    end = file.seek(0, io.SEEK_END)
    if not header.startswith(SIGNATURES):
        return
    # the new entries, and behind them what they point to
    try:
        directory = TiffImagePlugin.ImageFileDirectory_v2(header)
        if exif:
            described, _ = _described(io.BytesIO(exif.removeprefix(EXIF)))
            if IFD.Exif in described:
                described[IFD.Exif] |= {Base.ExifImageWidth: width, Base.ExifImageHeight: height}
            for tag, value in described.items():
                directory[tag] = value
        if iptc and iptc.startswith(IPTC):
            directory[RESOURCES] = iptc.removeprefix(IPTC)
        block = directory.tobytes(end + end % 2)
    except DAMAGE:
        return
    # the main directory with them
    order = "<" if header.startswith(b"II") else ">"
    (start,) = struct.unpack(f"{order}L", header[4:])
    file.seek(start)
    entries = _entries(file.read(2 + ENTRY * 2**16), order) | _entries(block, order)
    file.seek(end)
    file.write(b"\0" * (end % 2) + block)
    start = file.tell()
    file.write(struct.pack(f"{order}H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4))
    file.seek(4)
    file.write(struct.pack(f"{order}L", start))
    file.seek(0, io.SEEK_END)


def _described(file: BinaryIO) -> tuple[Image.Exif, bytes | None]:
    """What holds for any file of the image: EXIF without makers' notes and links, and Photoshop's resources."""
    source, kept = Image.Exif(), Image.Exif()
    with warnings.catch_warnings(action="ignore"):  # of single tags that are damaged
        source.load_from_fp(file)
        kept.update({name: source[name] for name in DESCRIPTIONS if name in source})
        for tag in (IFD.Exif, IFD.GPSInfo):
            if values := source.get_ifd(tag):
                kept[tag] = {name: value for name, value in values.items() if name not in LINKS}
        resources = source.get(RESOURCES)
    return kept, resources if isinstance(resources, bytes) else None


def _entries(directory: bytes, order: str) -> dict[int, bytes]:
    (count,) = struct.unpack_from(f"{order}H", directory)
    places = range(2, 2 + ENTRY * count, ENTRY)
    return {struct.unpack_from(f"{order}H", directory, at)[0]: directory[at : at + ENTRY] for at in places}

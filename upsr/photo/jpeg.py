"""Whether a JPEG has all its scans; decoders fill what is missing without a word."""

import re

MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")  # in scan data, other than a restart marker
SOF = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive; of the others, decoders refuse most
SOI, EOI, SOS = 0xD8, 0xD9, 0xDA
BARE = frozenset({0x01, SOI, EOI, *range(0xD0, 0xD8)})  # markers without a length


def has_all_scans(data: bytes) -> bool:
    """True unless a component of the first image in `data` lacks a scan, or a progressive one its last refinement.

    ITU-T T.81: B.2 for the markers, G.1.1 for the scans of progressive images. True for what is no JPEG of a Huffman
    coded kind: the decoder has the last word.
    """
    offset, left = 2, None  # left: component -> coefficients that lack their lowest bit
    progressive = False
    while (found := MARKER.search(data, offset)) is not None:
        marker, offset = found[1][0], found.end()
        if marker == EOI or (marker == SOI and left is not None):
            break
        if marker in BARE:
            continue
        segment = data[offset + 2 : offset + int.from_bytes(data[offset : offset + 2])]
        offset += 2 + len(segment)
        if marker in SOF and left is None and len(segment) >= 6:
            progressive = marker == 0xC2
            left = {c: set(range(64)) for c in segment[6::3][: segment[5]]}
        elif marker == SOS and left is not None and segment:
            components = segment[1 : 1 + 2 * segment[0] : 2]
            first, last, precision = (*segment[1 + 2 * segment[0] :], 0, 0, 0)[:3]
            done = range(first, last + 1) if progressive else range(64)
            for component in components:
                if not progressive or precision & 15 == 0:
                    left.get(component, set()).difference_update(done)
    return left is None or not any(left.values())

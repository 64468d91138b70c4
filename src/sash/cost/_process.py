from __future__ import annotations
def process_bounds(found, work):
    return int(found.peak_bytes*1.4)+(100<<20), int(found.peak_bytes)+(36<<20)

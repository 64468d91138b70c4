from __future__ import annotations
def reasons(found):
    return ()

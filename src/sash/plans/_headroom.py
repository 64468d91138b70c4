"""What a forecast may be under the truth by, kept free of every budget."""

SHARE = 1000
"""One part in so many. Of 75 steps the worst under-estimate of an allocator peak was 0.5 parts (see bench/results)."""


def usable(budget_bytes: int) -> int:
    """The most that a forecast peak may be for the run to stay within the budget."""
    return budget_bytes - -(-budget_bytes // SHARE)


def needed(peak_bytes: int) -> int:
    """The least budget that a run with this forecast peak stays within: `usable(needed(peak)) >= peak`."""
    return -(-peak_bytes * SHARE // (SHARE - 1)) + 1

"""Deconvolution: how exactly a blur by sigma 1 is undone, how near the expected error is to the true one, and what is refused.

Recovery: a float64 picture convolved with a Gaussian of sigma 1 ("wrap" and "reflect"), and deconvolved; the largest error as a share of
the largest sample. Expected errors: sixty random cases (picture, sigma, noise, method, border), the plan's error, and its range where noise
was not stated, beside the root mean square of result less picture by the picture's. Kernels beyond a condition of 1e15: the inverse is to
be refused, and "auto" is to take Wiener.
"""

from __future__ import annotations

from statistics import median
from typing import Any

import numpy as np

SIDE, CASES, WITHIN = 256, 60, 10.0
RECOVERY_AIM = 1e-10
STEEP = (2.0, 3.0, 6.0)
"""Sigmas whose condition is above 1e15."""


def gaussian(sigma: float) -> np.ndarray:
    """A kernel cut at 8 sigma."""
    radius = int(np.ceil(8 * sigma))
    line = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return np.outer(line, line) / line.sum() ** 2


def signal(rng: np.random.Generator, side: int, slope: float) -> np.ndarray:
    """Noise whose amplitude falls as frequency to the power of -slope, of mean 1."""
    at = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    at[0, 0] = 1
    made = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((side, side))) / at**slope, s=(side, side))
    return made / made.std() + 1.0


def deconvolve_section(side: int = SIDE, cases: int = CASES) -> dict[str, Any]:
    """Three tables."""
    from sash import arrays

    rng = np.random.default_rng(3)
    recovered = []
    for boundary in ("wrap", "reflect"):
        exact = rng.random((side, side))
        blurred = arrays.convolve(exact, gaussian(1.0), boundary=boundary, tolerance=1e-13)
        found = arrays.deconvolve(blurred, gaussian(1.0), boundary=boundary)
        recovered.append({"boundary": boundary, "error": float(np.abs(found - exact).max() / np.abs(exact).max())})
    rows = [expected(index, side) for index in range(cases)]
    return {"side": side, "recovered": recovered, "rows": rows, "steep": [steep(sigma, side) for sigma in STEEP], "within": WITHIN}


def expected(index: int, side: int) -> dict[str, Any]:
    """One case."""
    from sash import arrays

    rng = np.random.default_rng([11, index])
    sigma, slope = float(rng.uniform(0.6, 1.6)), float(rng.uniform(0.6, 1.6))
    noise = float(10 ** rng.uniform(-10, -2))
    boundary: Any = str(rng.choice(["wrap", "reflect", "mirror"]))
    method, stated = str(rng.choice(["auto", "inverse", "wiener"])), bool(rng.random() < 0.7)
    exact = signal(rng, side, slope)
    blurred = arrays.convolve(exact, gaussian(sigma), boundary=boundary, tolerance=1e-13)
    data = blurred + noise * rng.standard_normal(blurred.shape)
    words: dict[str, Any] = {"boundary": boundary, "method": method, **({"noise": noise} if stated else {})}
    plan = arrays.deconvolve(data, gaussian(sigma), plan_only=True, **words)
    made = arrays.deconvolve(data, gaussian(sigma), **words)
    error = float(np.sqrt(np.mean((made - exact) ** 2) / np.mean(exact**2)))
    row = {"sigma": sigma, "slope": slope, "noise": noise, "stated": stated, "boundary": boundary, "asked": method, "method": plan.method}
    least, most = plan.error_range
    return {**row, "expected": plan.error, "actual": error, "ratio": plan.error / error, "least": least, "most": most}


def steep(sigma: float, side: int) -> dict[str, Any]:
    """What becomes of the inverse, and of "auto"."""
    import sash
    from sash import arrays

    data = np.random.default_rng(5).random((side, side))
    try:
        arrays.deconvolve(data, gaussian(sigma), method="inverse", plan_only=True)
        refused = ""
    except sash.SashError as error:
        refused = str(error)
    plan: Any = arrays.deconvolve(data, gaussian(sigma), plan_only=True)
    return {"sigma": sigma, "condition": plan.condition, "inverse_refused": bool(refused), "message": refused[:200], "auto": plan.method}


def show_deconvolve(found: dict[str, Any]) -> None:
    """A few lines."""
    for row in found["recovered"]:
        print(f"a blur by sigma 1 undone, {row['boundary']}: off by {row['error']:.1e} of the largest sample")
    ratios = [row["ratio"] for row in found["rows"]]
    for stated in (True, False):
        some = [row["ratio"] for row in found["rows"] if row["stated"] == stated]
        told = "stated" if stated else "not stated"
        if some:
            print(
                f"expected / actual error, noise {told}: {len(some)} cases, median {median(some):.2f}, {min(some):.2g} to {max(some):.2g}"
            )
    near = sum(1 / found["within"] <= ratio <= found["within"] for ratio in ratios)
    print(f"within {found['within']:g} times: {near} of {len(ratios)}")
    told = sum(row["least"] / found["within"] <= row["actual"] <= row["most"] * found["within"] for row in found["rows"])
    print(f"within the range that the plan tells where noise was not stated: {told} of {len(ratios)}")
    for row in found["steep"]:
        print(
            f"sigma {row['sigma']:g}, condition {row['condition']:.1e}: inverse refused: {row['inverse_refused']}; auto takes {row['auto']}"
        )


def missed_deconvolve(found: dict[str, Any]) -> list[str]:
    """Recovery, errors, refusals."""
    lines = [f"{row['boundary']}: off by {row['error']:.1e}" for row in found["recovered"] if row["error"] > RECOVERY_AIM]
    for row in found["rows"]:
        if not 1 / found["within"] <= row["ratio"] <= found["within"]:
            told = ", ".join(f"{key} {row[key]}" for key in ("sigma", "slope", "noise", "stated", "boundary", "method"))
            lines.append(f"expected {row['expected']:.1e}, found {row['actual']:.1e}: {told}")
    for row in found["steep"]:
        if not row["inverse_refused"] or not row["auto"].startswith("wiener"):
            lines.append(
                f"sigma {row['sigma']:g}: the inverse was {'refused' if row['inverse_refused'] else 'made'}; auto took {row['auto']}"
            )
    return lines

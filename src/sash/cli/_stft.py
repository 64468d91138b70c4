"""`sash stft`: spectra of a sound file's frames, or what such frames resolve."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sash.cli._array import ArrayBudget, Border, Device, Overwrite, PlanOnly, Restart, Workers, run
from sash.cli._show import guarded, show, show_json
from sash.cli._workload import Debug, Json
from sash.errors import InputError

Source = Annotated[Path | None, typer.Argument(help="The sound: .wav, .flac, .npy or .zarr, of (samples,) or (channels, samples).")]
Out = Annotated[Path | None, typer.Argument(help="The file to write: .zarr or .npy, or a picture, .png.")]
Frame = Annotated[int, typer.Option("--frame", help="Samples of a frame.")]
Hop = Annotated[int | None, typer.Option("--hop", help="Samples from one frame to the next; a quarter of a frame unless said.")]
Taper = Annotated[str, typer.Option("--window", help="hann, hamming, blackman … or one with a parameter, as 'kaiser,8.6'.")]
Rate = Annotated[float | None, typer.Option("--rate", help="Samples a second, where the file does not say.")]
Size = Annotated[int | None, typer.Option("--fft-size", help="Samples that are transformed, the frame in the middle of zeros.")]
Centered = Annotated[bool, typer.Option("--centered/--whole-frames", help="Whether the first frame's middle is on the first sample.")]
Output = Annotated[str | None, typer.Option("--output", help="complex, magnitude, power, db or mel; db for a picture, else complex.")]
Mels = Annotated[int, typer.Option("--mels", help="Bands of --output mel.")]
Explain = Annotated[
    tuple[int, float] | None, typer.Option("--explain", metavar="FRAME RATE", help="Print what such frames resolve, and end.")
]


@guarded
def stft(
    source: Source = None,
    out: Out = None,
    frame: Frame = 1024,
    hop: Hop = None,
    window: Taper = "hann",
    explain: Explain = None,
    rate_hz: Rate = None,
    output: Output = None,
    mels: Mels = 128,
    fft_size: Size = None,
    centered: Centered = True,
    boundary: Border = "mirror",
    budget: ArrayBudget = "512 MiB",
    device: Device = None,
    workers: Workers = None,
    overwrite: Overwrite = False,
    restart: Restart = False,
    plan_only: PlanOnly = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Spectra of a sound's frames, from file to file; or what frames of so many samples resolve.

    sash stft song.wav song.png --frame 2048

    sash stft --explain 1024 44100
    """
    from sash import arrays

    taper = _window(window)
    if explain is not None:
        table = arrays.explain_bins(explain[0], explain[1], hop, taper)
        if as_json:
            show_json(json.dumps({"schema": "sash.bin-table/1", **asdict(table)}))
        else:
            show(str(table))
        return
    if source is None or out is None:
        raise InputError("stft reads one file and writes another: sash stft song.wav song.png; or: sash stft --explain 1024 44100.")
    kind: Any = output or ("db" if out.suffix.lower() == ".png" else "complex")
    told: dict[str, Any] = {"window": taper, "boundary": boundary, "output": kind, "mels": mels}
    settings = {"rate_hz": rate_hz, "fft_size": fft_size, "centered": centered}
    places = {"budget": budget, "device": device, "workers": workers, "overwrite": overwrite, "restart": restart}
    run(partial(arrays.stft, source, frame, hop, out, **told, **settings, **places), out, plan_only, as_json)


def _window(text: str) -> str | tuple[Any, ...]:
    """A window's name, or its name and parameters."""
    name, *given = text.split(",")
    try:
        return (name, *(float(one) for one in given)) if given else name
    except ValueError:
        raise InputError(f"--window is {text!r}; write a name, or a name and numbers as 'kaiser,8.6'.") from None

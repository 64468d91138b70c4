"""WAV and FLAC: (frames,) of one channel, (channels, frames) of more."""

from __future__ import annotations

import re
import threading
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from sash.arrays._store_raw import RawSink, new_npy, open_npy
from sash.arrays._store_sink import Sink, Target, remove, sync
from sash.arrays._store_source import Box, Seen, Source, checked_shape, needs
from sash.errors import InputError
from sash.window import Interval

_BLOCK = 1 << 18
"""Bytes of frames that are decoded or encoded at a time."""
_DECODER_BYTES = 64 << 10
"""Of a block of FLAC while it is decoded."""
_FLAC_FRAME = 4096
"""Frames in one of FLAC's blocks, as its encoders choose them."""
_READ_AS = {"FLOAT": "float32", "DOUBLE": "float64", "PCM_24": "int32", "PCM_32": "int32"}
_WAV = {"float32": "FLOAT", "float64": "DOUBLE", "int16": "PCM_16", "int32": "PCM_32"}
_FLAC = {"int16": "PCM_16"}
_CLASSIC = (1 << 32) - (1 << 16)
"""Bytes up to which WAV's own lengths reach; beyond, it is RF64."""
_RATES = {".wav": (1 << 31) - 1, ".flac": 655350}


class SoundSource(Source):
    """Sound in a file. Samples of 8 to 16 bits are read as int16, of 24 and 32 as int32, their highest bits first."""

    def __init__(self, path: Path) -> None:
        sounds = _soundfile(f"reading {path}")
        self._seen = Seen.now(path)
        try:
            self._file = sounds.SoundFile(str(path))
        except (sounds.SoundFileError, OSError, TypeError) as error:
            raise InputError(f"{path} cannot be read as sound ({error}).") from error
        try:
            self._error = sounds.SoundFileError
            _whole(path, self._file.extra_info)
            channels, frames = self._file.channels, self._file.frames
            self.shape = checked_shape((frames,) if channels == 1 else (channels, frames), str(path))
        except InputError:
            self._file.close()
            raise
        self.dtype = np.dtype(_READ_AS.get(self._file.subtype, "int16"))
        self.rate_hz = int(self._file.samplerate)
        self._flac = self._file.format == "FLAC"
        self.grain = (*self.shape[:-1], min(_FLAC_FRAME if self._flac else 1, frames))
        self._channels = channels
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened_again, (self._seen,)

    def _identified(self) -> dict[str, Any]:
        return self._seen.identity

    def read_bytes(self, box: Box) -> int:
        """Bytes of all channels, and of whole blocks of FLAC."""
        cell = self.grain[-1]
        cells = -(-box[-1].stop // cell) - box[-1].start // cell if box[-1].length else 0
        return cells * cell * self._channels * self.dtype.itemsize

    def scratch_bytes(self, box: Box) -> int:
        """Frames of all channels, a block at a time, and the decoder."""
        frame = self._channels * self.dtype.itemsize
        return min(max(_BLOCK, frame), box[-1].length * frame) + _DECODER_BYTES

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _fill(self, box: Box, into: np.ndarray) -> None:
        start, stop = box[-1]
        step = _frames(self._channels, self.dtype)
        block = np.empty((min(step, stop - start), self._channels), self.dtype)
        channels = slice(*box[0]) if len(box) == 2 else 0
        # One file, one place in it: threads take turns.
        with self._lock:
            try:
                self._file.seek(start)
                for first in range(start, stop, step):
                    wanted = block[: min(step, stop - first)]
                    got = self._file.read(dtype=self.dtype.name, out=wanted, always_2d=True)
                    if len(got) < len(wanted):
                        raise InputError(f"{self._seen.path} ends at frame {first + len(got)} of {self.shape[-1]}; it was cut off.")
                    into[..., first - start : first - start + len(got)] = got.T[channels]
            except (self._error, RuntimeError) as error:
                self._seen.check(self._seen.path)
                raise InputError(
                    f"{self._seen.path} cannot be decoded between frames {start} and {stop} ({error}); it was cut off."
                ) from error
        self._seen.check(self._seen.path)


class SoundSink(Sink):
    """Sound that is kept as plain numbers on the disk until all of it is there, since its coders write front to back."""

    def __init__(self, target: Target, inner: RawSink, rate_hz: int, subtype: str) -> None:
        self.shape, self.dtype, self.grain = inner.shape, inner.dtype, inner.grain
        self._target, self._inner, self._rate_hz, self._subtype = target, inner, rate_hz, subtype

    def __reduce__(self) -> tuple[Any, ...]:
        return SoundSink, (self._target, self._inner, self._rate_hz, self._subtype)

    def scratch_bytes(self, box: Box) -> int:
        """A buffer, and at the end the frames that are encoded at a time."""
        return max(self._inner.scratch_bytes(box), 3 * _BLOCK)

    def flush(self) -> None:
        """Make what was written outlast the machine."""
        self._inner.flush()

    def finish(self) -> Path:
        """The path; the sound is encoded, and appears under its name."""
        self.flush()
        self._inner.close()
        encoded = self._target.partial.with_suffix(".encoded")
        try:
            self._encode(encoded)
            sync(encoded)
        except BaseException:
            remove(encoded)
            raise
        encoded.replace(self._target.final)
        self._target.discard()
        sync(self._target.final.parent)
        return self._target.out

    def abandon(self) -> None:
        """Take the unfinished numbers away."""
        self._inner.abandon()

    def close(self) -> None:
        """Let go of the file."""
        self._inner.close()

    def _put(self, box: Box, part: np.ndarray) -> None:
        self._inner.write(box, part)

    def _encode(self, path: Path) -> None:
        sounds = _soundfile(f"writing {self._target.out}")
        nbytes = prod(self.shape) * self.dtype.itemsize
        kind = "FLAC" if self._target.final.suffix.lower() == ".flac" else "WAV" if nbytes <= _CLASSIC else "RF64"
        channels = self.shape[0] if len(self.shape) == 2 else 1
        step = _frames(channels, self.dtype)
        numbers = open_npy(self._target.partial)
        try:
            with self._target.room(nbytes), sounds.SoundFile(str(path), "w", self._rate_hz, channels, self._subtype, format=kind) as file:
                for first in range(0, self.shape[-1], step):
                    frames = Interval(first, min(first + step, self.shape[-1]))
                    block = np.empty((*self.shape[:-1], frames.length), self.dtype)
                    numbers.read((*(Interval(0, length) for length in self.shape[:-1]), frames), block)
                    file.write(np.ascontiguousarray(block.T))
        except sounds.SoundFileError as error:
            raise InputError(
                f"{self._target.out} could not be encoded ({error}); is there room on the disk for {nbytes} bytes more?"
            ) from error
        finally:
            numbers.close()


def new_sound(target: Target, shape: tuple[int, ...], dtype: np.dtype, resume: bool, rate_hz: int | None) -> SoundSink:
    """Sound to be written; raises `InputError` for what its format does not hold, and without a rate."""
    _soundfile(f"writing {target.out}")
    suffix = target.final.suffix.lower()
    kinds, most = (_FLAC, 8) if suffix == ".flac" else (_WAV, 1024)
    if dtype.name not in kinds:
        near = " .wav holds float32 and int32." if kinds is _FLAC and dtype.name in _WAV else " Convert it, or write a .npy file."
        raise InputError(f"{target.out}: {suffix} holds {', '.join(kinds)}, not {dtype}.{near}")
    if len(shape) > 2 or (len(shape) == 2 and not 1 <= shape[0] <= most):
        raise InputError(
            f"{target.out}: {suffix} holds (frames,) or (channels, frames) of at most {most} channels, not {shape}; write a .npy file."
        )
    if rate_hz is None or not 1 <= rate_hz <= _RATES[suffix]:
        raise InputError(
            f"{target.out}: sound has frames a second, up to {_RATES[suffix]}, and rate_hz is {rate_hz}; give it, as rate_hz=16000."
        )
    return SoundSink(target, new_npy(target, shape, dtype, resume), rate_hz, kinds[dtype.name])


def _frames(channels: int, dtype: np.dtype) -> int:
    """Frames that are decoded or encoded at a time."""
    return max(1, _BLOCK // (channels * dtype.itemsize))


def _whole(path: Path, header: str) -> None:
    """Raise `InputError` if the header promises more than the file has: libsndfile reads what is there, and only notes it."""
    for name, stated, found in re.findall(r"^\s*(RIFF|Riff size|data)\s*: (\d+) \(should be (\d+)\)", header, re.MULTILINE):
        # A recorder that writes to a pipe leaves the highest number there.
        if int(found) < int(stated) < _CLASSIC or (name == "Riff size" and int(found) < int(stated)):
            raise InputError(f"{path} was cut off: its header says {stated} bytes, and there are {found}.")


def _opened_again(seen: Seen) -> SoundSource:
    seen.check(seen.path)
    return SoundSource(seen.path)


def _soundfile(doing: str) -> Any:
    try:
        import soundfile
    except (ImportError, OSError):
        # OSError: the package is there, and the libsndfile that it calls is not.
        raise needs("soundfile", doing) from None
    return soundfile

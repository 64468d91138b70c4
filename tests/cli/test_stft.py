"""`sash stft` on files, and what frames resolve."""

import json

import numpy as np
import soundfile
from PIL import Image

from sash import arrays


def test_a_sound_becomes_spectra_and_a_picture(sash, folder):
    time = np.arange(30_000) / 8000
    sound = (0.5 * np.sin(2 * np.pi * (200 + 300 * time) * time)).astype(np.float32)
    soundfile.write(folder / "sweep.wav", sound, 8000, subtype="FLOAT")
    result = sash("stft", "sweep.wav", "sweep.npy", "--frame", "256", "--hop", "64", "--window", "kaiser,8.6")
    assert result.exit_code == 0, result.output
    assert "wrote sweep.npy" in result.stdout
    wanted = arrays.stft(sound, 256, 64, window=("kaiser", 8.6))
    assert np.array_equal(np.load(folder / "sweep.npy").reshape(wanted.shape), wanted)
    result = sash("stft", "sweep.wav", "sweep.png", "--frame", "256")
    assert result.exit_code == 0, result.output
    picture = np.asarray(Image.open(folder / "sweep.png"))
    loudest = picture.shape[0] - 1 - picture.argmax(0)
    # A tone that rises: its bin does, and so does the brightest row.
    assert (np.diff(loudest[5:-5].astype(int)) >= -1).all()
    assert loudest[-10] > loudest[10] + 30
    result = sash("stft", "sweep.wav", "mel.npy", "--output", "mel", "--mels", "20", "--plan", "--json")
    assert json.loads(result.stdout)["shape"][-2] == 20
    assert not (folder / "mel.npy").exists()


def test_what_frames_resolve_is_told(sash):
    result = sash("stft", "--explain", "1024", "44100")
    assert result.exit_code == 0, result.output
    assert "43.07 Hz apart" in result.stdout
    assert "23.22 ms" in result.stdout
    found = json.loads(sash("stft", "--explain", "1024", "44100", "--json").stdout)
    assert (found["bins"], found["hop"]) == (513, 256)


def test_wrong_use_is_named(sash, folder):
    assert "sash stft song.wav song.png" in sash("stft").stderr
    assert "--window is 'kaiser,x'" in sash("stft", "a.wav", "b.npy", "--window", "kaiser,x").stderr
    soundfile.write(folder / "a.wav", np.zeros(4000, np.float32), 8000)
    result = sash("stft", "a.wav", "b.png", "--output", "complex")
    assert result.exit_code == 2
    assert "say output='db'" in result.stderr
    assert not list(folder.glob("b.png*"))
    result = sash("stft", "a.wav", "b.npy", "--window", "hanning")
    assert "hann" in result.stderr

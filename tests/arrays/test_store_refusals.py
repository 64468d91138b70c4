"""What a store refuses: it says what was asked, what was found, and what works, and leaves nothing behind."""

import errno
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import tifffile
import torch
import zarr
from PIL import Image

from sash.arrays._store import open_sink, open_source
from sash.arrays._store_tiff import _tifffile
from sash.errors import InputError
from sash.window import Interval

RNG = np.random.default_rng(0)


def read(source):
    into = np.empty(source.shape, source.dtype)
    source.read(tuple(Interval(0, length) for length in source.shape), into)
    return into


def cut(path, share):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def test_a_file_that_was_cut_off_is_refused_when_it_is_opened(tmp_path):
    array = RNG.random((5, 60, 70), np.float32)
    np.save(tmp_path / "a.npy", array)
    tifffile.imwrite(tmp_path / "stack.tif", array)
    tifffile.imwrite(tmp_path / "page.tif", array[0])
    tifffile.imwrite(tmp_path / "strips.tif", array, compression="zlib", rowsperstrip=16, photometric="minisblack")
    tifffile.imwrite(tmp_path / "tiles.tif", array[0], compression="zlib", tile=(16, 16))
    with tifffile.TiffWriter(tmp_path / "pages.tif") as file:
        for page in array:
            file.write(page, contiguous=False, metadata=None)
    for name in ("FLOAT", "PCM_16", "PCM_24"):
        soundfile.write(tmp_path / f"{name}.wav", array[0].reshape(-1), 8000, subtype=name)
    soundfile.write(tmp_path / "big.wav", array[0].reshape(-1), 8000, format="RF64", subtype="PCM_16")
    for path in sorted(tmp_path.iterdir()):
        full = path.read_bytes()
        for share in (0.4, 0.7, 0.97):
            cut(path, share)
            with pytest.raises(InputError, match=r"cut off|damaged"):
                open_source(path)
            path.write_bytes(full)


def test_a_coded_file_that_was_cut_off_is_refused_when_it_is_read(tmp_path):
    Image.fromarray(RNG.integers(0, 256, (60, 70, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(RNG.integers(0, 256, (60, 70, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    soundfile.write(tmp_path / "a.flac", RNG.random(20_000), 8000)
    for path in sorted(tmp_path.iterdir()):
        cut(path, 0.6)
        source = open_source(path)
        with pytest.raises(InputError, match="cut off"):
            read(source)
        source.close()


@pytest.mark.parametrize("suffix", [".npy", ".tif", ".png", ".jpg", ".wav", ".flac"])
@pytest.mark.parametrize("content", [b"", b"no such thing" * 10], ids=["empty", "garbage"])
def test_a_file_that_is_something_else_is_refused(tmp_path, suffix, content):
    (tmp_path / f"a{suffix}").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as"):
        open_source(tmp_path / f"a{suffix}")


def test_a_damaged_tile_or_chunk_is_named(tmp_path):
    array = RNG.random((64, 64), np.float32)
    tifffile.imwrite(tmp_path / "a.tif", array, compression="zlib", tile=(32, 32))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        place = file.pages[0].dataoffsets[3]
    with (tmp_path / "a.tif").open("r+b") as file:
        file.seek(place)
        file.write(bytes(200))
    source = open_source(tmp_path / "a.tif")
    with pytest.raises(InputError, match="tile or strip 3"):
        read(source)
    source.close()
    sink = open_sink(tmp_path / "a.zarr", array.shape, array.dtype, chunks=(16, 16), shards=(32, 32))
    sink.write((Interval(0, 64), Interval(0, 64)), array)
    sink.finish()
    cut(tmp_path / "a.zarr" / "c" / "1" / "1", 0.5)
    with pytest.raises(InputError, match=r"cannot be read at .*cut off"):
        read(open_source(tmp_path / "a.zarr"))


@pytest.mark.parametrize("kind", ["a.npy", "raw.tif", "strips.tif", "tiles.tif"])
def test_damage_in_a_header_ends_in_a_message(tmp_path, kind):
    path, array, rng = tmp_path / kind, RNG.random((3, 40, 48), np.float32), np.random.default_rng(1)
    options = {"raw.tif": {}, "strips.tif": {"rowsperstrip": 8, "compression": "zlib"}, "tiles.tif": {"tile": (16, 16)}}
    np.save(path, array) if kind == "a.npy" else tifffile.imwrite(path, array, photometric="minisblack", **options[kind])
    content = path.read_bytes()
    refused = 0
    for _ in range(100):
        damaged = bytearray(content)
        damaged[rng.integers(0, 300)] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            source = open_source(path)
        except InputError:
            refused += 1
        else:
            source.close()
    assert refused


def test_a_file_that_changes_is_noticed(tmp_path):
    array = RNG.random((64, 64), np.float32)
    np.save(tmp_path / "a.npy", array)
    tifffile.imwrite(tmp_path / "a.tif", array, compression="zlib", tile=(32, 32))
    soundfile.write(tmp_path / "a.wav", array[0], 8000)
    zarr.create_array(store=tmp_path / "a.zarr", shape=(8, 8), dtype="f4")
    for name in ("a.npy", "a.tif", "a.wav", "a.zarr"):
        source = open_source(tmp_path / name)
        sent = pickle.dumps(source)
        read(source)
        changed = tmp_path / name / "zarr.json" if name == "a.zarr" else tmp_path / name
        os.utime(changed, (1, 1))
        with pytest.raises(InputError, match="changed while it was read"):
            read(source)
        with pytest.raises(InputError, match="changed"):
            pickle.loads(sent)
        source.close()
    source = open_source(tmp_path / "a.npy")
    cut(tmp_path / "a.npy", 0.5)
    with pytest.raises(InputError, match="changed while it was read"):
        read(source)
    source.close()


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.array([1, "a"], object), "object"),
        (np.array(["a", "b"]), "<U1"),
        (np.zeros(3, "f4,i2"), r"\('f0'"),
        (np.zeros(3, "M8[s]"), "datetime64"),
        (np.zeros(3, np.longdouble), r"astype"),
        (np.zeros((3, 0)), r"\(3, 0\), so it holds none"),
        (np.zeros(()), "one number"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), "filled"),
        ([1, 2, 3], "list"),
        (torch.zeros(3, requires_grad=True), "detach"),
        (torch.zeros(3, dtype=torch.bfloat16), "float"),
        (torch.zeros(3, device="meta"), "on meta"),
        (torch.eye(3).to_sparse(), "dense"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(array, told):
    with pytest.raises(InputError, match=told):
        open_source(array)


def test_pickled_and_empty_files_are_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("a .npy file was unpickled",)

    for array, told in (
        (np.array([Trap()], object), "object"),
        (np.zeros((0, 4)), "none"),
        (np.array(["a"]), "<U1"),
        (np.float64(3), "one number"),
    ):
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(InputError, match=told):
            open_source(tmp_path / "a.npy")


def test_paths_that_are_no_file_are_refused(tmp_path):
    (tmp_path / "b.npy").mkdir()
    (tmp_path / "c.npy").write_bytes(b"")
    (tmp_path / "d.xyz").write_bytes(b"")
    for name, told in (
        ("a.npy", r"no file .*a\.npy.* has b\.npy, c\.npy"),
        ("b.npy", "is a folder"),
        ("d.xyz", r"\.xyz; sash reads \.npy, \.zarr"),
    ):
        with pytest.raises(InputError, match=told):
            open_source(tmp_path / name)


def test_a_group_of_zarr_names_its_arrays(tmp_path):
    group = zarr.open_group(tmp_path / "g.zarr", mode="w")
    with pytest.raises(InputError, match="it has no arrays"):
        open_source(tmp_path / "g.zarr")
    group.create_array("0", shape=(3,), dtype="f4")
    group.create_group("deep").create_array("1", shape=(3,), dtype="f4")
    for source in (tmp_path / "g.zarr", group):
        with pytest.raises(InputError, match=r"one of its arrays: .*0, deep/1"):
            open_source(source)
    (tmp_path / "e.zarr").mkdir()
    with pytest.raises(InputError, match="cannot be read as zarr"):
        open_source(tmp_path / "e.zarr")


def test_tiffs_that_cannot_be_told_or_undone_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "several.tif") as file:
        file.write(np.zeros((20, 30), np.uint8), metadata=None)
        file.write(np.zeros((40, 50), np.uint8), metadata=None)
    with pytest.raises(InputError, match="several images"):
        open_source(tmp_path / "several.tif")
    Image.fromarray(RNG.integers(0, 256, (60, 70), dtype=np.uint8)).save(tmp_path / "lzw.tif", compression="tiff_lzw")
    without = "import sys; sys.modules['imagecodecs'] = None; from sash.arrays._store import open_source; open_source(sys.argv[1])"
    told = subprocess.run([sys.executable, "-c", without, tmp_path / "lzw.tif"], capture_output=True, text=True)
    assert "pip install imagecodecs" in told.stderr.splitlines()[-1]


def test_colours_of_sixteen_bits_are_refused_before_the_decoder_drops_eight(tmp_path):
    import imageio.v3

    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    assert imageio.v3.imread(path).shape == (4, 4, 3)
    content = bytearray(path.read_bytes())
    content[24] = 16
    path.write_bytes(content)
    with pytest.raises(InputError, match="16 bits"):
        open_source(path)


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "told"),
    [
        ("a.xyz", (4, 4), "f4", r"\.xyz; sash writes \.npy"),
        ("a", (4, 4), "f4", "suffix none"),
        ("a.npy", (4, 0), "f4", "none"),
        ("a.npy", (4,), "O", "object"),
        ("a.tif", (4, 4), "bool", "uint8"),
        ("a.tif", (4, 4), "complex128", "complex64"),
        ("a.png", (4, 4), "float32", r"uint8 and uint16.*\.tif"),
        ("a.png", (4, 4, 3), "uint16", "uint16 of one channel"),
        ("a.png", (4, 4, 5), "uint8", "1, 2, 3 or 4 channels"),
        ("a.jpg", (4, 4, 4), "uint8", "1 or 3 channels"),
        ("a.jpg", (4, 4), "uint16", "holds uint8, not uint16"),
        ("a.jpg", (4, 70_000), "uint8", "at most 65500"),
        ("a.wav", (4,), "uint8", "holds float32"),
        ("a.wav", (2, 2, 2), "int16", "frames"),
        ("a.flac", (4,), "float32", r"\.wav holds float32"),
        ("a.flac", (9, 40), "int16", "at most 8 channels"),
    ],
)
def test_an_output_that_its_format_does_not_hold_is_refused(tmp_path, name, shape, dtype, told):
    with pytest.raises(InputError, match=told):
        open_sink(tmp_path / name, shape, dtype, rate_hz=8000)
    assert list(tmp_path.iterdir()) == []


def test_sound_needs_a_rate(tmp_path):
    for rate in (None, 0, 1 << 40):
        with pytest.raises(InputError, match="rate_hz=16000"):
            open_sink(tmp_path / "a.wav", (4,), "int16", rate_hz=rate)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("chunks", "shards", "told"), [((4,), None, "2 lengths"), ((4, 0), None, "at least 1"), ((4, 4), (8, 6), r"\(8, 8\) do")]
)
def test_chunks_that_do_not_divide_are_refused(tmp_path, chunks, shards, told):
    with pytest.raises(InputError, match=told):
        open_sink(tmp_path / "a.zarr", (64, 64), "f4", chunks=chunks, shards=shards)
    assert list(tmp_path.iterdir()) == []


def test_an_output_is_not_written_over_without_a_word(tmp_path):
    for name in ("a.npy", "a.tif", "a.zarr"):
        open_sink(tmp_path / name, (4, 4), "f4").finish()
        with pytest.raises(InputError, match="overwrite=True"):
            open_sink(tmp_path / name, (4, 4), "f4")
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr" / "letters.txt").write_text("dear")
    for name in ("mine.zarr", "mine.npy"):
        (tmp_path / name).mkdir(exist_ok=True)
        with pytest.raises(InputError, match="not replaced"):
            open_sink(tmp_path / name, (4, 4), "f4", overwrite=True)
    assert (tmp_path / "mine.zarr" / "letters.txt").exists()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no folder .*none"):
        open_sink(tmp_path / "none" / "a.npy", (4, 4), "f4")


@pytest.mark.parametrize("name", ["a.npy", "a.zarr", "a.tif", "a.png"])
def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch, name):
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    with pytest.raises(InputError, match="cannot be written to"):
        open_sink(tmp_path / name, (4, 4), "uint8")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.npy", "a.tif", "a.wav"])
def test_an_output_larger_than_the_disk_is_refused_before_it_is_begun(tmp_path, name):
    with pytest.raises(InputError, match=r"takes 3.55 TiB; .* free"):
        open_sink(tmp_path / name, (1_950_000_000_000,), "int16", rate_hz=8000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.npy", "a.tif"])
def test_a_disk_that_fills_up_meanwhile_leaves_no_partial(tmp_path, monkeypatch, name):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"takes 64 B; .* free"):
        open_sink(tmp_path / name, (4, 4), "f4")
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_reserves_nothing_is_written_all_the_same(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    sink = open_sink(tmp_path / "a.npy", (4, 4), "f4")
    sink.write((Interval(0, 1), Interval(0, 4)), np.ones((1, 4), np.float32))
    np.testing.assert_array_equal(np.load(sink.finish())[:, 0], [1, 0, 0, 0])


def test_reserved_room_is_taken_at_once(tmp_path):
    sink = open_sink(tmp_path / "a.npy", (1 << 20,), "f4")
    assert (tmp_path / "a.npy.partial").stat().st_blocks * 512 >= 4 << 20
    sink.abandon()
    assert list(tmp_path.iterdir()) == []


def test_only_what_was_left_can_be_gone_on_with(tmp_path):
    for name, dtype in (("a.npy", "uint8"), ("a.tif", "uint8"), ("a.zarr", "uint8"), ("a.png", "uint8"), ("a.wav", "int16")):
        with pytest.raises(InputError, match="begin anew"):
            open_sink(tmp_path / name, (2, 40), dtype, resume=True, rate_hz=8000)
    for name in ("a.npy", "a.tif", "a.zarr"):
        open_sink(tmp_path / name, (40, 40), "uint8").close()
        for shape, dtype in (((40, 41), "uint8"), ((40, 40), "int16")):
            with pytest.raises(InputError, match=r"was left with the shape \(40, 40\) of uint8"):
                open_sink(tmp_path / name, shape, dtype, resume=True)
    with pytest.raises(InputError, match="gone with its process"):
        open_sink(None, (4,), "f4", resume=True)


def test_output_arrays_that_do_not_fit_are_refused():
    fixed = np.zeros((4, 4), np.float32)
    fixed.flags.writeable = False
    lines = np.zeros((8, 4), np.float32)
    for out, told in (
        (np.zeros((4, 5), np.float32), r"\(4, 5\)"),
        (np.zeros((4, 4)), "float64"),
        (fixed, "cannot be written"),
        (np.lib.stride_tricks.as_strided(np.zeros(4, np.float32), (4, 4), (0, 4)), "cannot be written"),
        (lines[2:6], "input's memory"),
        (3, "type int"),
    ):
        with pytest.raises(InputError, match=told):
            open_sink(out, (4, 4), "float32", like=open_source(lines[:4]))
    open_sink(lines[4:], (4, 4), "float32", like=open_source(lines[:4]))


def test_memory_that_is_not_there_is_named():
    with pytest.raises(InputError, match="name a file"):
        open_sink(None, (1 << 58,), "float64")


@pytest.mark.parametrize(
    ("library", "name"), [("zarr", "a.zarr"), ("tifffile", "a.tif"), ("PIL", "a.png"), ("soundfile", "a.wav"), ("soundfile", "a.flac")]
)
def test_a_library_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch, library, name):
    sink = open_sink(
        tmp_path / name, (40,) if library == "soundfile" else (40, 40), "int16" if library == "soundfile" else "uint8", rate_hz=8000
    )
    sink.finish()
    for module in [module for module in sys.modules if module == library or module.startswith(f"{library}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=r"pip install 'sash\[arrays\]'"):
        open_source(tmp_path / name)
    shutil.rmtree(tmp_path / name) if name == "a.zarr" else (tmp_path / name).unlink()
    with pytest.raises(InputError, match=r"pip install 'sash\[arrays\]'"):
        open_sink(tmp_path / name, (40, 40), "uint8", rate_hz=8000)


def test_what_tifffile_says_of_other_files_is_left_alone(caplog):
    assert _tifffile("reading") is tifffile
    tifffile.logger().error("elsewhere")
    assert "elsewhere" in caplog.text

"""Sources and sinks: what is written in tiles, from two threads, is read back in any boxes, whatever the format."""

import os
import pickle
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import product

import numpy as np
import pytest
import soundfile
import tifffile
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sash.arrays._store import open_sink, open_source
from sash.arrays._store_raw import BUFFER, RawSource
from sash.arrays._store_zarr import zarr_layout
from sash.window import Interval

RNG = np.random.default_rng(0)


def numbers(shape, dtype="float32"):
    dtype = np.dtype(dtype)
    made = RNG.integers(0, 256, (*shape, dtype.itemsize), dtype=np.uint8).view(dtype)[..., 0]
    return RNG.random(shape).astype(dtype) if dtype.kind in "fc" else made % 2 == 1 if dtype.kind == "b" else made


def whole(shape):
    return tuple(Interval(0, length) for length in shape)


def boxed(array, box):
    return array[tuple(slice(*part) for part in box)]


def read(source, box=None):
    box = box or whole(source.shape)
    into = np.empty([part.length for part in box], source.dtype)
    source.read(box, into)
    return into


def write(sink, array, tile):
    """In tiles of whole grains, from two threads."""
    steps = [grain * max(1, length // grain) for grain, length in zip(sink.grain, tile, strict=True)]
    boxes = list(
        product(
            *(
                [Interval(first, min(first + step, length)) for first in range(0, length, step)]
                for length, step in zip(array.shape, steps, strict=True)
            )
        )
    )
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda box: sink.write(box, boxed(array, box)), boxes))


def boxes(shape):
    def ordered(pair):
        return Interval(min(pair), max(pair))

    return st.tuples(*(st.tuples(st.integers(0, length), st.integers(0, length)).map(ordered) for length in shape))


FORMATS = [
    ("a.npy", (61, 83), "float32", {}),
    ("a.npy", (5, 31, 40), "float16", {}),
    ("a.npy", (1000,), "complex64", {}),
    ("a.npy", (30, 40, 3), "uint8", {}),
    ("a.npy", (17, 19), "bool", {}),
    ("a.zarr", (61, 83), "float32", {"chunks": (8, 16), "shards": (16, 32)}),
    ("a.zarr", (5, 31, 40), "int16", {"chunks": (1, 16, 16)}),
    ("a.zarr", (61, 83), "complex64", {}),
    ("a.tif", (61, 83), "float32", {}),
    ("a.tif", (61, 83, 3), "uint8", {}),
    ("a.tiff", (4, 61, 83), "uint16", {}),
    ("a.tif", (61, 83, 2), "int64", {}),
    ("a.png", (61, 83), "uint8", {}),
    ("a.png", (61, 83), "uint16", {}),
    ("a.png", (61, 83, 2), "uint8", {}),
    ("a.png", (61, 83, 3), "uint8", {}),
    ("a.png", (61, 83, 4), "uint8", {}),
    ("a.wav", (5000,), "float32", {"rate_hz": 8000}),
    ("a.wav", (2, 5000), "int16", {"rate_hz": 44100}),
    ("a.wav", (3, 5000), "int32", {"rate_hz": 44100}),
    ("a.wav", (2, 70000), "float64", {"rate_hz": 44100}),
    ("a.flac", (2, 70000), "int16", {"rate_hz": 48000}),
    (None, (61, 83), "float32", {}),
]


@pytest.fixture(params=FORMATS, ids=lambda case: f"{case[0]}-{case[1]}-{case[2]}")
def stored(request, tmp_path):
    """An array, and what was written of it."""
    name, shape, dtype, options = request.param
    array = numbers(shape, dtype)
    sink = open_sink(None if name is None else tmp_path / name, shape, dtype, **options)
    write(sink, array, tuple(max(1, length // 3) for length in shape))
    sink.flush()
    made = sink.finish()
    assert [path.name for path in tmp_path.iterdir()] == ([] if name is None else [name])
    return array, made


def test_what_was_written_in_tiles_is_read_in_boxes(stored):
    array, made = stored
    with closing(open_source(made)) as source:
        assert source.shape == array.shape
        assert source.dtype == array.dtype
        np.testing.assert_array_equal(read(source), array)

        @settings(max_examples=25)
        @given(boxes(array.shape), st.sampled_from(["C", "F", "apart"]))
        def check(box, order):
            shape = [part.length for part in box]
            into = np.empty([2 * length for length in shape], array.dtype)[tuple(slice(None, None, 2) for _ in shape)]
            into = into if order == "apart" else np.empty(shape, array.dtype, order)
            source.read(box, into)
            np.testing.assert_array_equal(into, boxed(array, box))
            assert source.read_bytes(box) >= into.nbytes

        check()


def test_many_threads_read_one_source(stored):
    array, made = stored
    parts = [tuple(Interval(*sorted(RNG.integers(0, length + 1, 2).tolist())) for length in array.shape) for _ in range(40)]
    with closing(open_source(made)) as source, ThreadPoolExecutor(8) as pool:
        for box, found in zip(parts, pool.map(lambda box: read(source, box), parts), strict=True):
            np.testing.assert_array_equal(found, boxed(array, box))


def test_files_are_pickled_by_their_path_and_arrays_with_their_content(stored):
    array, made = stored
    with closing(open_source(made)) as source:
        sent = pickle.dumps(source)
        assert isinstance(made, np.ndarray) or len(sent) < 2000
        with closing(pickle.loads(sent)) as again:
            np.testing.assert_array_equal(read(again), array)
            assert again.identity == source.identity
            assert again.rate_hz == source.rate_hz


def test_sources_hold_what_they_say(stored):
    array, made = stored
    with closing(open_source(made)) as source:
        read(source)
        if str(made).endswith("zarr"):
            # zarr has a loop of its own, with threads, and makes objects for each chunk of a call.
            assert 256 << 10 < source.held_bytes <= 768 << 10
        else:
            assert source.held_bytes == (array.nbytes if str(made).endswith(".png") else 0)
        assert (source.array is None) == (not isinstance(made, np.ndarray))
        assert source.array is None or np.shares_memory(source.array, made)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("layout", ["C", "F"])
@pytest.mark.parametrize("dtype", ["i2", "f4", "c8", "u1"])
def test_npy_files_of_any_byte_order_and_layout_are_read(tmp_path, order, layout, dtype):
    array = np.asarray(numbers((7, 30, 50), dtype).astype(np.dtype(dtype).newbyteorder(order)), order=layout)
    np.save(tmp_path / "a.npy", array)
    with closing(open_source(tmp_path / "a.npy")) as source:
        assert source.dtype.isnative
        np.testing.assert_array_equal(read(source), array)
        box = (Interval(1, 6), Interval(3, 4), Interval(7, 41))
        np.testing.assert_array_equal(read(source, box), boxed(array, box))
        with closing(pickle.loads(pickle.dumps(source))) as again:
            np.testing.assert_array_equal(read(again, box), boxed(array, box))


@pytest.mark.parametrize("shape", [(2000, 300), (300, 2000), (20, 20, 300), (400, 500, 3), (3, 100_000)])
def test_narrow_boxes_are_read_with_the_gaps_between_them(tmp_path, shape):
    array = numbers(shape, "float64")
    np.save(tmp_path / "a.npy", array)
    with closing(open_source(tmp_path / "a.npy")) as source:
        for axis, length in enumerate(shape):
            box = tuple(Interval(length // 2, length // 2 + 1) if other == axis else part for other, part in enumerate(whole(shape)))
            np.testing.assert_array_equal(read(source, box), boxed(array, box))
            assert array.nbytes // length <= source.read_bytes(box) <= array.nbytes


def test_arrays_of_every_make_are_read(tmp_path):
    array = numbers((40, 60), "float32")
    fixed = array.copy()
    fixed.flags.writeable = False
    for made in (array[::-2, 3::3], array.T, np.asfortranarray(array), fixed, array.astype(">f4"), array.view(np.memmap)):
        source = open_source(made)
        np.testing.assert_array_equal(read(source), made)
        assert source.held_bytes == 0
        assert (source.array is None) == (not made.dtype.isnative)
        assert source.array is None or np.shares_memory(source.array, made)
    assert open_source(array).identity == open_source(array.astype(">f4")).identity == open_source(np.asfortranarray(array)).identity
    assert open_source(array).identity != open_source(array + 1).identity


def test_the_identity_of_a_large_array_is_taken_without_a_copy():
    array = np.zeros((64, 1 << 16), np.float64).T
    source = open_source(array)
    tracemalloc.start()
    try:
        assert len(source.identity["sha256"]) == 64
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_tensors_are_read_where_they_lie():
    tensor = torch.arange(12.0).reshape(3, 4)
    source = open_source(tensor)
    np.testing.assert_array_equal(read(source), tensor.numpy())
    assert source.array is not None
    assert source.array.ctypes.data == tensor.data_ptr()
    np.testing.assert_array_equal(read(open_source(tensor.to(torch.complex64).mul(1j).conj())), tensor.to(torch.complex64).mul(-1j).numpy())


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_maps_of_whole_files_are_read_by_parts_and_others_as_memory(tmp_path, mode):
    array = numbers((30, 40), "float32")
    np.save(tmp_path / "a.npy", array)
    (tmp_path / "b.bin").write_bytes(b"header" + array.tobytes())
    saved, plain = np.load(tmp_path / "a.npy", mmap_mode=mode), np.memmap(tmp_path / "b.bin", "f4", mode, 6, (30, 40))
    if mode == "r+":
        plain[3] = saved[3] = array[3] = 7
    for mapped in (saved, plain):
        with closing(open_source(mapped)) as source:
            assert isinstance(source, RawSource) == (mode != "c")
            np.testing.assert_array_equal(read(source), array)
            with closing(pickle.loads(pickle.dumps(source))) as again:
                np.testing.assert_array_equal(read(again), array)
        with closing(open_source(mapped[5:, ::2])) as source:
            assert source.array is not None
            np.testing.assert_array_equal(read(source), array[5:, ::2])


TIFFS = {
    "strips": {"rowsperstrip": 16, "compression": "zlib"},
    "tiles": {"tile": (32, 48)},
    "tiles with differences": {"tile": (32, 48), "compression": "zlib", "predictor": True},
    "big-endian": {"byteorder": ">", "rowsperstrip": 8},
    "big-endian tiles": {"byteorder": ">", "tile": (16, 16), "compression": "zlib"},
    "BigTIFF": {"bigtiff": True},
    "LZW": {"rowsperstrip": 16, "compression": "lzw"},
}


@pytest.mark.parametrize("kind", TIFFS)
@pytest.mark.parametrize("shape", [(100, 120), (4, 100, 120), (100, 120, 3)], ids=["page", "stack", "colours"])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_tiffs_of_many_makes_are_read(tmp_path, kind, shape, dtype):
    array = numbers(shape, dtype)
    options = {"photometric": "rgb" if shape[-1] == 3 else "minisblack"}
    tifffile.imwrite(tmp_path / "a.tif", array, **TIFFS[kind], **options)
    with closing(open_source(tmp_path / "a.tif")) as source:
        assert source.shape == shape
        np.testing.assert_array_equal(read(source), array)

        @settings(max_examples=15)
        @given(boxes(shape))
        def check(box):
            np.testing.assert_array_equal(read(source, box), boxed(array, box))

        check()
        with closing(pickle.loads(pickle.dumps(source))) as again:
            np.testing.assert_array_equal(read(again), array)


def test_planes_volumes_and_bits_of_tiff_are_read(tmp_path):
    planes, volume, bits = numbers((3, 60, 70), "uint8"), numbers((20, 40, 48)), numbers((60, 71), "bool")
    tifffile.imwrite(tmp_path / "planes.tif", planes, photometric="rgb", planarconfig="separate", tile=(16, 32), compression="zlib")
    tifffile.imwrite(tmp_path / "volume.tif", volume, tile=(16, 16, 16), volumetric=True)
    tifffile.imwrite(tmp_path / "bits.tif", bits)
    for name, array in (("planes", planes), ("volume", volume), ("bits", bits)):
        with closing(open_source(tmp_path / f"{name}.tif")) as source:
            np.testing.assert_array_equal(read(source), array)
            box = tuple(Interval(length // 3, length - 1) for length in array.shape)
            np.testing.assert_array_equal(read(source, box), boxed(array, box))


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}], ids=["raw", "zlib"])
def test_pages_that_lie_apart_are_a_stack(tmp_path, options):
    array = numbers((5, 40, 50))
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for page in array:
            file.write(page, contiguous=False, metadata=None, **options)
    with closing(open_source(tmp_path / "a.tif")) as source:
        assert isinstance(source, RawSource) == (not options)
        box = (Interval(1, 4), Interval(3, 30), Interval(0, 50))
        np.testing.assert_array_equal(read(source), array)
        np.testing.assert_array_equal(read(source, box), boxed(array, box))
        with closing(pickle.loads(pickle.dumps(source))) as again:
            np.testing.assert_array_equal(read(again, box), boxed(array, box))


@pytest.mark.parametrize("nested", [True, False], ids=["SubIFDs", "pages"])
def test_of_a_pyramid_the_largest_level_is_read(tmp_path, nested):
    array = numbers((100, 120, 3), "uint8")
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        metadata = {} if nested else {"metadata": None}
        file.write(array, tile=(32, 32), photometric="rgb", subifds=2 if nested else None, **metadata)
        for step in (2, 4):
            file.write(array[::step, ::step], tile=(32, 32), photometric="rgb", subfiletype=1, **metadata)
    with closing(open_source(tmp_path / "a.tif")) as source:
        assert source.grain == (32, 32, 3)
        np.testing.assert_array_equal(read(source), array)


def test_a_tile_that_is_not_in_the_file_is_its_fill(tmp_path):
    array = np.zeros((64, 64), np.uint8)
    array[:32, :32] = 9
    tifffile.imwrite(tmp_path / "a.tif", (tile for tile in (array[:32, :32], None, None, None)), shape=(64, 64), dtype="u1", tile=(32, 32))
    with closing(open_source(tmp_path / "a.tif")) as source:
        np.testing.assert_array_equal(read(source), array)


def test_a_tiff_is_classic_up_to_four_gibibytes_and_big_beyond(tmp_path, monkeypatch):
    # Sparse files: no block is taken for 4 GiB of nothing.
    monkeypatch.delattr(os, "posix_fallocate")
    for rows, big in ((40_000, False), (45_000, True)):
        path = tmp_path / f"{rows}.tif"
        sink = open_sink(path, (rows, 100_000), "uint8")
        last = (Interval(rows - 1, rows), Interval(0, 100_000))
        line = numbers((1, 100_000), "uint8")
        sink.write(last, line)
        sink.finish()
        with tifffile.TiffFile(path) as file:
            assert file.is_bigtiff == big
        with closing(open_source(path)) as source:
            np.testing.assert_array_equal(read(source, last), line)
        path.unlink()


def test_zarr_arrays_are_read_open_or_by_path_in_either_format(tmp_path):
    array = numbers((50, 60))
    for name, options in (
        ("v2.zarr", {"zarr_format": 2}),
        ("big.zarr", {"dtype": ">f4", "zarr_format": 2}),
        ("v3.zarr", {"shards": (32, 16)}),
    ):
        made = zarr.create_array(store=tmp_path / name, shape=array.shape, chunks=(16, 16), **{"dtype": "f4", **options})
        made[...] = array
        for given_as in (made, tmp_path / name, str(tmp_path / name)):
            with closing(open_source(given_as)) as source:
                assert source.grain == (16, 16)
                assert source.dtype.isnative
                np.testing.assert_array_equal(read(source), array)
    inside = zarr.open_group(tmp_path / "g.zarr", mode="w").create_array("scale0", shape=(50, 60), dtype="f4")
    inside[...] = array
    np.testing.assert_array_equal(read(open_source(tmp_path / "g.zarr" / "scale0")), array)
    memory = zarr.create_array(store={}, shape=(50, 60), dtype="f4")
    memory[...] = array
    np.testing.assert_array_equal(read(open_source(memory)), array)


@given(st.lists(st.integers(1, 1 << 20), min_size=1, max_size=3), st.sampled_from(["u1", "f4", "c16"]))
def test_chunks_are_a_few_mebibytes_and_shards_whole_chunks(shape, dtype):
    chunks, shards = zarr_layout(tuple(shape), np.dtype(dtype))
    size = np.dtype(dtype).itemsize
    assert all(shard % chunk == 0 for shard, chunk in zip(shards, chunks, strict=True))
    assert np.prod(chunks, dtype=object) * size <= 2 << 20
    assert np.prod(shards, dtype=object) * size <= 64 << 20
    if np.prod(shape, dtype=object) * size > 64 << 20:
        assert np.prod(chunks, dtype=object) * size > 1 << 18
        assert np.prod(shards, dtype=object) * size > 16 << 20


def test_zarr_is_written_a_shard_a_file(tmp_path):
    array = numbers((64, 64)) + 1
    sink = open_sink(tmp_path / "a.zarr", array.shape, array.dtype, chunks=(8, 8), shards=(32, 32))
    assert sink.grain == (32, 32)
    write(sink, array, (32, 64))
    sink.finish()
    assert len([path for path in (tmp_path / "a.zarr" / "c").rglob("*") if path.is_file()]) == 4
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a.zarr", mode="r")[...], array)


def test_pictures_of_every_mode_are_read(tmp_path):
    pixels = numbers((40, 50, 3), "uint8")
    Image.fromarray(pixels).quantize(16).save(tmp_path / "palette.png")
    Image.fromarray(pixels[..., 0] > 9).save(tmp_path / "bits.png")
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    for name, shape, dtype in (("palette.png", (40, 50, 3), "uint8"), ("bits.png", (40, 50), "bool"), ("a.jpg", (40, 50, 3), "uint8")):
        with closing(open_source(tmp_path / name)) as source:
            assert (source.shape, source.dtype.name) == (shape, dtype)
            with Image.open(tmp_path / name) as picture:
                expected = np.asarray(picture.convert("RGB") if name == "palette.png" else picture)
            np.testing.assert_array_equal(read(source), expected)


def test_a_jpeg_is_written_near_its_pixels(tmp_path):
    rows, columns = np.mgrid[:64, :80]
    pixels = np.stack([rows * 3, columns * 2, rows + columns], -1).astype(np.uint8)
    sink = open_sink(tmp_path / "a.jpg", pixels.shape, "uint8")
    write(sink, pixels, (20, 20, 3))
    found = read(open_source(sink.finish()))
    assert np.abs(found.astype(int) - pixels).max() <= 8


def test_a_picture_beyond_pillows_warning_is_read(tmp_path):
    Image.fromarray(np.zeros((10_000, 9_000), bool)).save(tmp_path / "a.png")
    with closing(open_source(tmp_path / "a.png")) as source:
        assert source.shape == (10_000, 9_000)
        assert not read(source, (Interval(5000, 5001), Interval(0, 9000))).any()


@pytest.mark.parametrize(("subtype", "dtype"), [("PCM_U8", "int16"), ("PCM_16", "int16"), ("PCM_24", "int32"), ("FLOAT", "float32")])
def test_sound_of_every_width_is_read(tmp_path, subtype, dtype):
    made = (numbers((3000, 2)) - 0.5).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", made, 22050, subtype=subtype)
    with closing(open_source(tmp_path / "a.wav")) as source:
        assert (source.dtype.name, source.shape, source.rate_hz) == (dtype, (2, 3000), 22050)
        np.testing.assert_array_equal(read(source), soundfile.read(tmp_path / "a.wav", dtype=dtype)[0].T)


def test_the_rate_of_sound_is_its_sources_where_none_is_given(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(100, np.float32), 16000)
    with closing(open_source(tmp_path / "a.wav")) as source:
        open_sink(tmp_path / "b.flac", (100,), "int16", like=source).finish()
    assert soundfile.info(tmp_path / "b.flac").samplerate == 16000


def test_a_run_is_taken_up_in_the_file_that_it_left(tmp_path):
    array = numbers((64, 64))
    top, bottom = (Interval(0, 32), Interval(0, 64)), (Interval(32, 64), Interval(0, 64))
    for name, options in (("a.npy", {}), ("a.tif", {}), ("a.zarr", {"chunks": (16, 16), "shards": (32, 64)}), ("b.wav", {"rate_hz": 8000})):
        sink = open_sink(tmp_path / name, array.shape, array.dtype, **options)
        sink.write(top, boxed(array, top))
        sink.flush()
        sink.close()
        assert not (tmp_path / name).exists()
        sink = open_sink(tmp_path / name, array.shape, array.dtype, resume=True, **options)
        sink.write(bottom, boxed(array, bottom))
        np.testing.assert_array_equal(read(open_source(sink.finish())), array)


def test_an_output_replaces_another_only_when_it_is_finished(tmp_path):
    for name in ("a.npy", "a.zarr", "a.tif", "a.png"):
        for value in (1, 2):
            sink = open_sink(tmp_path / name, (8, 8), "uint8", overwrite=True)
            sink.write(whole((8, 8)), np.full((8, 8), value, np.uint8))
            if value == 2:
                assert (read(open_source(tmp_path / name)) == 1).all()
            sink.finish()
        assert (read(open_source(tmp_path / name)) == 2).all()
        sink = open_sink(tmp_path / name, (8, 8), "uint8", overwrite=True)
        sink.abandon()
        assert (read(open_source(tmp_path / name)) == 2).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "a.png", "a.tif", "a.zarr"]


def test_an_output_behind_a_link_is_written_where_the_link_leads(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "a.npy").symlink_to(tmp_path / "far" / "b.npy")
    sink = open_sink(tmp_path / "a.npy", (3,), "int64")
    sink.write(whole((3,)), np.arange(3))
    assert (tmp_path / "far" / "b.npy.partial").exists()
    assert sink.finish() == tmp_path / "a.npy"
    assert (tmp_path / "a.npy").is_symlink()
    np.testing.assert_array_equal(np.load(tmp_path / "far" / "b.npy"), [0, 1, 2])


def test_the_users_array_is_filled_and_given_back():
    out = np.zeros((4, 10), ">f4")[:, ::2]
    sink = open_sink(out, (4, 5), "float32")
    assert sink.held_bytes == 0
    sink.write(whole((4, 5)), numbers((4, 5)))
    assert sink.finish() is out
    assert out.all()
    assert open_sink(None, (4, 5), "float32").held_bytes == 80


def test_a_box_off_the_grain_is_our_own_mistake(tmp_path):
    sink = open_sink(tmp_path / "a.zarr", (64, 64), "float32", chunks=(16, 16), shards=(32, 32))
    with pytest.raises(AssertionError):
        sink.write((Interval(0, 16), Interval(0, 32)), numbers((16, 32)))
    sink.abandon()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="allocations are counted by tracemalloc, which zlib's and zarr's own escape elsewhere")
@pytest.mark.parametrize("name", ["a.npy", "tiles.tif", "strips.tif", "a.zarr", "a.png", "a.wav", "a.flac"])
def test_a_read_allocates_no_more_than_it_says(tmp_path, name):
    path = tmp_path / name
    sound = name in ("a.wav", "a.flac")
    array = numbers((2, 400_000), "int16") if sound else numbers((1500, 1400), "uint8" if name == "a.png" else "float32")
    if name == "tiles.tif":
        tifffile.imwrite(path, array, tile=(512, 512), compression="zlib")
    elif name == "strips.tif":
        tifffile.imwrite(path, array, rowsperstrip=400, compression="zlib", byteorder=">")
    else:
        layout = {"chunks": (256, 256), "shards": (512, 512)} if name == "a.zarr" else {"rate_hz": 8000} if sound else {}
        sink = open_sink(path, array.shape, array.dtype, **layout)
        write(sink, array, array.shape)
        sink.finish()
    box = whole(array.shape) if sound else (Interval(100, 1400), Interval(3, 1100))
    into = np.empty([part.length for part in box][::-1], array.dtype).T
    with closing(open_source(path)) as source:
        if name != "a.png":
            source.read(tuple(Interval(part.start, part.start + 1) for part in box), into[:1, :1])
        says = source.scratch_bytes(box) + (source.held_bytes if name == "a.png" else 0)
        tracemalloc.start()
        try:
            source.read(box, into)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak <= says
        assert name == "a.png" or says <= max(4 * BUFFER, 4 * source.read_bytes(box))
    np.testing.assert_array_equal(into, boxed(array, box))


@pytest.mark.parametrize("shape", [(512, 512), (500, 512)], ids=["whole", "over the edge"])
def test_a_write_of_a_shard_allocates_no_more_than_it_says(tmp_path, shape):
    array = numbers((1024, 1024))
    sink = open_sink(tmp_path / "a.zarr", (shape[0] + 512, 1024), array.dtype, chunks=(128, 128), shards=(512, 512))
    top, box = (Interval(0, 512), Interval(0, 1024)), (Interval(512, 512 + shape[0]), Interval(0, 1024))
    sink.write(top, array[:512])
    # Of what was written before, and is written again, nothing is read.
    for part in (top, box, box):
        tracemalloc.start()
        try:
            sink.write(part, array[: part[0].length])
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak <= sink.scratch_bytes(part)
    np.testing.assert_array_equal(read(open_source(sink.finish()), box), array[: shape[0]])

"""Arrays of the protocol: exchange with its own client in both directions; nothing malformed is accepted."""

from __future__ import annotations

import random
import struct

import blosc2
import numpy as np
import pytest
from nnInteractive.inference.remote.serialization import pack_array, unpack_array

from voxsam.protocols.nninteractive import wire
from voxsam.protocols.nninteractive.wire import TYPES, pack, read_header, unpack
from voxsam.server.errors import Refused, TooLarge

PLENTY = 1 << 30


def sample(dtype: str = "int16", shape=(2, 3, 5)) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 200, shape)
    return (values > 100) if dtype == "bool" else values.astype(dtype)


def received(body: bytes) -> np.ndarray:
    return unpack(read_header(body), PLENTY)


def header(shape, dtype=b"uint8", version=1, codec=1, magic=b"NNIA") -> bytes:
    fixed = struct.pack("<4sBBBB", magic, version, codec, len(shape), len(dtype))
    return fixed + dtype + struct.pack(f"<{len(shape)}q", *shape)


def chunk(data: bytes, claimed: int | None = None) -> bytes:
    packed = blosc2.compress2(data, typesize=1)
    return struct.pack("<QQ", len(data) if claimed is None else claimed, len(packed)) + packed


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("codec", [blosc2.Codec.ZSTD, blosc2.Codec.LZ4])
def test_what_the_client_packs_is_read(dtype, codec):
    array = sample(dtype)
    got = received(pack_array(array, codec=codec))
    assert got.dtype == array.dtype
    np.testing.assert_array_equal(got, array)


@pytest.mark.parametrize("array", [sample("uint8", (7, 1, 4)), np.zeros((9, 8, 7), np.uint8), sample("bool")])
def test_the_client_reads_what_is_packed(array):
    got = unpack_array(pack(array))
    assert got.dtype == array.dtype
    np.testing.assert_array_equal(got, array)


def test_a_view_with_swapped_axes_is_packed_as_it_looks():
    array = sample("uint8", (2, 3, 5)).transpose(2, 0, 1)[::-1]
    np.testing.assert_array_equal(unpack_array(pack(array)), array)


def test_arrays_of_several_chunks_are_joined(monkeypatch):
    monkeypatch.setattr(wire, "CHUNK_BYTES", 1000)
    array = sample("uint8", (10, 20, 30))
    body = pack(array)
    assert struct.unpack_from("<I", body, 8 + len(b"uint8") + 24) == (6,)
    np.testing.assert_array_equal(unpack_array(body), array)
    np.testing.assert_array_equal(received(body), array)


def test_bytes_that_are_no_bool_become_true():
    body = header((3,), b"bool") + struct.pack("<I", 1) + chunk(b"\x00\x02\xff")
    assert received(body).tolist() == [False, True, True]
    assert received(body).view(np.uint8).tolist() == [0, 1, 1]


def test_the_header_alone_says_how_large_an_array_is():
    assert read_header(header((4, 5, 6), b"float64")).nbytes == 960


MALFORMED = {
    "nothing": (b"", "0 bytes, too short"),
    "half a header": (header((4, 5, 6))[:20], "20 bytes, too short"),
    "another magic": (header((4,), magic=b"PK\3\4"), "begins with"),
    "another version": (header((4,), version=2), "begins with"),
    "another codec": (header((4,), codec=9), "begins with"),
    "objects": (header((4,), b"object"), "type 'object'; expected one of bool"),
    "records": (header((4,), b"V1000000000"), "type 'V1000000000'"),
    "no ASCII": (header((4,), b"\xff\xfe"), "expected one of bool"),
    "no axes": (header(()), r"shape \(\)"),
    "too many axes": (header((1,) * 5), "1 to 4 axes"),
    "an empty axis": (header((4, 0, 4)), "axes of at least 1"),
    "a negative axis": (header((-4, -4)), "axes of at least 1"),
    "no chunks": (header((4,)), "ends within a chunk"),
    "chunks that never come": (header((4,)) + struct.pack("<I", 4_000_000_000), "ends within a chunk"),
    "a chunk of no blosc2": (header((4,)) + struct.pack("<IQQ", 1, 4, 40) + b"\x07" * 40, "another length"),
    "a chunk without data": (header((4,)) + struct.pack("<IQQ", 1, 4, 0), "ends within a chunk"),
    "a chunk that claims more": (header((9,)) + struct.pack("<I", 1) + chunk(b"abcd", 9), "another length"),
    "less than claimed": (header((9,)) + struct.pack("<I", 1) + chunk(b"abcd"), "hold 4 bytes, its header claims 9"),
    "more than claimed": (header((2,)) + struct.pack("<I", 1) + chunk(b"abcd"), "hold 4 bytes, its header claims 2"),
    "something after it": (header((4,)) + struct.pack("<I", 1) + chunk(b"abcd") + b"x", "its header claims"),
}


@pytest.mark.parametrize(("body", "words"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_bodies_are_refused_in_words(body, words):
    with pytest.raises(Refused, match=words):
        received(body)


def test_a_claim_of_more_than_allowed_is_refused_before_memory_is_taken():
    bomb = header((1 << 40, 1 << 20)) + struct.pack("<I", 1) + chunk(bytes(1000))
    with pytest.raises(TooLarge, match="an array of 1,152,921,504,606,846,976 bytes; expected at most 1,073,741,824"):
        received(bomb)


def test_small_chunks_that_unpack_to_much_are_bounded_by_the_claim():
    zeros = bytes(1 << 20)
    body = header((1 << 20,)) + struct.pack("<I", 3) + chunk(zeros) * 3
    assert len(body) < 200
    with pytest.raises(Refused, match="chunks hold 3,145,728 bytes, its header claims 1,048,576"):
        received(body)


def test_truncated_and_changed_bodies_are_refused_or_read_never_worse():
    rng, array = random.Random(7), sample("int16", (8, 9, 10))
    body = pack_array(array)
    refused = 0
    for _ in range(400):
        damaged = bytearray(body[: rng.randrange(len(body))] if rng.random() < 0.5 else body)
        for _ in range(rng.randrange(4)):
            if damaged:
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            assert received(bytes(damaged)).nbytes <= PLENTY
        except Refused:
            refused += 1
    assert refused > 200  # the other half may be only another number in a voxel

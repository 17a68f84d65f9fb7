"""GunzipReader gives the bytes of gzip.open, with ISA-L and with zlib, and the same errors for damaged files."""

from __future__ import annotations

import gzip
import io
import zlib

import numpy as np
import pytest
from isal import isal_zlib

from voxsam.io import gunzip
from voxsam.io.gunzip import PIECE, GunzipReader


@pytest.fixture(params=[zlib, isal_zlib], ids=["zlib", "isal"], autouse=True)
def _library(request, monkeypatch):
    monkeypatch.setattr(gunzip, "inflate", request.param)


@pytest.fixture(scope="module")
def data() -> bytes:
    """Numbers that compress to about half, and as many zeros, which compress to almost nothing."""
    numbers = np.random.default_rng(0).integers(-100, 100, 3 * PIECE // 2 + 17, dtype=np.int16)
    return numbers.tobytes() + bytes(5 * PIECE)


def packed(path, *members: bytes, after: bytes = b""):
    path.write_bytes(b"".join(gzip.compress(member, 3) for member in members) + after)
    return path


def test_all_bytes_come_back_at_once_and_in_odd_pieces(tmp_path, data):
    path = packed(tmp_path / "a.gz", data)
    assert GunzipReader(path).read() == data
    with GunzipReader(path) as stream:
        pieces = [stream.read(n) for n in (1, 352, PIECE + 1, 10**8)]
    assert [len(piece) for piece in pieces[:3]] == [1, 352, PIECE + 1]
    assert b"".join(pieces) == data


def test_several_members_and_the_zeros_after_them_are_one_stream(tmp_path, data):
    path = packed(tmp_path / "a.gz", data, b"", b"tail", after=bytes(513))
    assert GunzipReader(path).read() == gzip.decompress(path.read_bytes()) == data + b"tail"


def test_readinto_fills_an_array_and_stops_at_the_end(tmp_path, data):
    array = np.full(len(data) // 2 + 100, 7, dtype=np.int16)
    assert GunzipReader(packed(tmp_path / "a.gz", data)).readinto(array) == len(data)
    assert array[: len(data) // 2].tobytes() == data
    assert (array[len(data) // 2 :] == 7).all()


def test_seek_goes_forth_and_back(tmp_path, data):
    with GunzipReader(packed(tmp_path / "a.gz", data)) as stream:
        for at in (700, 20, 2 * PIECE + 3):
            assert stream.seek(at) == stream.tell() == at
            assert stream.read(9) == data[at : at + 9]
        assert stream.seek(5, io.SEEK_CUR) == 2 * PIECE + 17
        with pytest.raises(io.UnsupportedOperation):
            stream.seek(0, io.SEEK_END)
        assert stream.seek(10**9) == len(data)


def test_what_is_no_gzip_file_is_said(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(b"plain text")
    with pytest.raises(gzip.BadGzipFile):
        GunzipReader(path).read()


@pytest.mark.parametrize("member", [b"", b"x"], ids=["empty", "one byte"])
def test_a_flood_of_members_with_hardly_a_byte_is_refused_at_once(tmp_path, member):
    """Each used to take as long as a quarter of a megabyte: half a minute for 4 MB of them."""
    path = packed(tmp_path / "a.gz", *[member] * 3000)
    with pytest.raises(zlib.error, match=r"^1,0\d\d gzip members of [\d,]+ bytes"):
        GunzipReader(path).read()


def test_many_members_of_some_kilobytes_are_one_stream(tmp_path):
    """As written by bgzip, with an empty one at the end."""
    blocks = [bytes([n % 251]) * 2000 for n in range(3000)]
    with GunzipReader(packed(tmp_path / "a.gz", *blocks, b"")) as stream:
        assert stream.read() == b"".join(blocks)


def test_bytes_after_the_last_member_are_passed_over(tmp_path):
    assert GunzipReader(packed(tmp_path / "a.gz", b"good", after=b"garbage")).read() == b"good"


@pytest.mark.parametrize("cut", [1, 4, 9, 100_000])
def test_a_file_that_ends_too_early_is_said(tmp_path, data, cut):
    path = packed(tmp_path / "a.gz", data)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(EOFError):
        GunzipReader(path).read()


@pytest.mark.parametrize("at", [-6, 5000], ids=["checksum", "stream"])
def test_damage_is_found_by_the_end(tmp_path, data, at):
    path = packed(tmp_path / "a.gz", data)
    damaged = bytearray(path.read_bytes())
    damaged[at] ^= 0x55
    path.write_bytes(damaged)
    with pytest.raises((zlib.error, EOFError)):
        GunzipReader(path).read()

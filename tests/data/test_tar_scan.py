"""Tars of every writer are read alike; every damage to one is told with its byte."""

import io
import re
import tarfile

import pytest
import webdataset
from webdataset.tariterators import base_plus_ext

from data.shards import ShardWriter
from data.tar_scan import PICKLES, TarDamage, TarScan, is_pickle, name_problem, split_name, tar_problems
from tests.data.test_shards import SAMPLES, write


def test_a_whole_shard_has_no_damage(tmp_path):
    write(tmp_path)
    assert tar_problems(tmp_path / "a.tar") == []


def test_every_cut_is_noticed(tmp_path):
    _, places = write(tmp_path)
    whole = (tmp_path / "a.tar").read_bytes()
    last = max(p.offset + p.size for members in places.values() for p in members.values())
    for length in [0, 100, 512, 1024, places["clip2"]["json"].offset - 512, places["clip2"]["mp4"].offset + 5, last]:
        path = tmp_path / "cut.tar"
        path.write_bytes(whole[:length])
        assert tar_problems(path), length


def test_a_broken_or_zeroed_header_is_noticed(tmp_path):
    _, places = write(tmp_path)
    whole = (tmp_path / "a.tar").read_bytes()
    header = places["clip2"]["json"].offset - 512
    flipped = bytearray(whole)
    flipped[header + 130] ^= 1
    zeroed = whole[:header] + bytes(512) + whole[header + 512 :]
    for data in (bytes(flipped), zeroed):
        (tmp_path / "b.tar").write_bytes(data)
        [problem] = tar_problems(tmp_path / "b.tar")
        assert f"header at byte {header}, after 'clip1.mp4'" in problem


def test_a_broken_last_header_is_noticed_though_only_zeros_follow(tmp_path):
    writer = ShardWriter(tmp_path, "a.tar")
    writer.write("a", {"txt": b"1"})
    place = writer.write("b", {"txt": b""})["txt"]
    writer.close()
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[place.offset - 512 + 1] ^= 1
    (tmp_path / "a.tar").write_bytes(data)
    assert tar_problems(tmp_path / "a.tar") == [
        "broken tar: broken header at byte 1024, after 'a.txt': 9216 bytes cannot be read"
    ]


def test_empty_tars_and_links_are_noticed(tmp_path):
    with tarfile.open(tmp_path / "e.tar", "w"):
        pass
    assert tar_problems(tmp_path / "e.tar") == ["empty tar"]
    with tarfile.open(tmp_path / "l.tar", "w") as tar:
        link = tarfile.TarInfo("clip.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link, io.BytesIO())
    assert tar_problems(tmp_path / "l.tar") == ["member 'clip.mp4' at byte 0 is a symbolic link, not a plain file"]


def scanned(data, **options):
    """Name, kind, bytes and place of every member."""
    scan = TarScan(io.BytesIO(data), len(data), **options)
    return [(entry, scan.payload(entry) if entry.kind == "file" else b"") for entry in scan.entries()]


@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_tarfile_finds(style):
    buffer = io.BytesIO()
    names = ["a.json", "folder/" + "x" * 60 + "/" + "y" * 60 + ".json"]
    names += ["z" * 180 + ".json"] if style != tarfile.USTAR_FORMAT else []
    with tarfile.open(fileobj=buffer, mode="w", format=style) as tar:
        for size, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size, member.mtime = 700 * size, 1.5
            tar.addfile(member, io.BytesIO(bytes([size + 1]) * member.size))
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    data = buffer.getvalue()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [(m.name, m.offset, m.offset_data, m.size) for m in tar]
    found = scanned(data)
    assert [(e.name.rstrip("/"), e.header, e.offset, e.size) for e, _ in found] == expected
    assert [payload for _, payload in found] == [*(bytes([n + 1]) * 700 * n for n in range(len(names))), b""]
    assert [entry.kind for entry, _ in found] == ["file"] * len(names) + ["folder"]


def test_tars_of_webdatasets_own_writer_are_read():
    buffer = io.BytesIO()
    with webdataset.TarWriter(buffer, encoder=False) as writer:  # it writes fractions of seconds, in extended headers
        writer.write({"__key__": "k" * 120, "json": b"{}", "latent.safetensors": b"x" * 600})
    assert [(entry.name, payload) for entry, payload in scanned(buffer.getvalue())] == [
        ("k" * 120 + ".json", b"{}"),
        ("k" * 120 + ".latent.safetensors", b"x" * 600),
    ]


def test_a_hashed_scan_reads_every_byte_once(tmp_path):
    info, _ = write(tmp_path)
    data = (tmp_path / "a.tar").read_bytes()

    class Pipe(io.BytesIO):
        def seek(self, *_):
            raise OSError("a pipe")

    scan = TarScan(Pipe(data), len(data), hashed=True)
    payloads = {entry.name: scan.payload(entry) for entry in scan.entries() if entry.name.endswith("json")}
    assert payloads == {f"{key}.json": members["json"] for key, members in SAMPLES.items()}
    assert scan.sha256() == info.sha256


def test_damage_is_told_with_its_byte_and_what_came_before(tmp_path):
    _, places = write(tmp_path)
    whole = (tmp_path / "a.tar").read_bytes()
    start = places["clip2"]["json"].offset - 512
    cuts = {
        start: f"cut off at byte {start}, after 'clip1.mp4': no end marker",
        start + 100: f"cut off at byte {start + 100}, inside a header after 'clip1.mp4'",
        start + 514: f"cut off at byte {start + 514}, inside 'clip2.json', which goes to byte {start + 518}",
    }
    for length, message in cuts.items():
        with pytest.raises(TarDamage, match=message):
            scanned(whole[:length])
    with pytest.raises(TarDamage, match=f"zeroed header at byte {start}, after 'clip1.mp4'"):
        scanned(whole[:start] + bytes(512) + whole[start + 512 :])
    with pytest.raises(TarDamage, match="compressed"):
        scanned(b"\x1f\x8b" + bytes(1022))


def test_no_flipped_bit_of_a_header_goes_unnoticed(tmp_path):
    _, places = write(tmp_path)
    whole = (tmp_path / "a.tar").read_bytes()
    start = places["clip2"]["json"].offset - 512
    names = [entry.name for entry, _ in scanned(whole)]
    for byte in range(512):
        damaged = bytearray(whole)
        damaged[start + byte] ^= 1 << byte % 8
        (tmp_path / "b.tar").write_bytes(damaged)
        problems = tar_problems(tmp_path / "b.tar")
        if problems:
            assert f"broken header at byte {start}, after 'clip1.mp4'" in problems[0]
        else:
            assert 148 <= byte < 156, "only the field of the checksum has room for flips without a meaning"
            assert [entry.name for entry, _ in scanned(bytes(damaged))] == names


@pytest.mark.parametrize("size", [b"77777777777\0", b"-0000000001\0", b"\x80" + b"\xff" * 11, b"\xff" * 12])
def test_a_hostile_size_ends_the_scan(size):
    member = tarfile.TarInfo("a.json").tobuf(tarfile.USTAR_FORMAT)
    block = member[:124] + size + b" " * 8 + member[156:]
    block = block[:148] + b"%06o\0 " % sum(block) + block[156:]
    with pytest.raises(TarDamage, match="broken header|inside 'a.json'"):
        scanned(block + bytes(1024))


@pytest.mark.parametrize("name", ["a.json", "film/a.latent.safetensors", "x/y/z.text.safetensors", "../../evil.json"])
def test_names_are_cut_as_webdataset_cuts_them(name):
    assert split_name(name) == base_plus_ext(name)


def test_the_current_folder_is_no_part_of_a_key_and_extensions_are_small():
    assert split_name("./film/a.JSON") == ("film/a", "json")
    assert split_name("README") == split_name("a/") == split_name(".hidden") == ("", "")


@pytest.mark.parametrize("name", ["../a.json", "a/../b.json", "/a.json", "a\\b.json"])
def test_names_that_lead_out_are_hostile(name):
    assert name_problem(name) == "hostile name: it leads out of the folder"


@pytest.mark.parametrize("extension", PICKLES)
def test_pickles_are_known_by_their_last_extension(extension):
    assert is_pickle(extension)
    assert is_pickle(f"latent.{extension}")
    assert re.match("pickle member", name_problem(f"a.{extension.upper()}"))


def test_good_names_have_no_problem():
    assert name_problem("film/a.latent.safetensors") is None
    assert name_problem("./a.json") is None
    assert not is_pickle("json")
    assert "must be KEY.EXTENSION" in name_problem("README")
    assert "bad key: sample key 'a b'" in name_problem("a b.json")

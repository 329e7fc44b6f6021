"""The table of footage: complete, checked by hash, free."""

import re

from data.demo_sources import DEMO_FOOTAGE, attribution_text

FREE = ("CC-BY 3.0", "CC0", "BSD", "public domain")


def test_every_file_has_a_hash_a_licence_and_an_author():
    for item in DEMO_FOOTAGE:
        assert re.fullmatch(r"[0-9a-f]{64}", item.sha256)
        assert re.fullmatch(r"[0-9a-f]{64}", item.package.sha256)
        assert "==" in item.package.requirement
        assert item.licence.startswith(FREE)
        assert item.attribution
    assert len({item.name for item in DEMO_FOOTAGE}) == len(DEMO_FOOTAGE)


def test_only_the_film_is_needed():
    assert [item.name for item in DEMO_FOOTAGE if item.is_needed] == ["bbb"]


def test_the_notice_names_every_file_its_licence_and_its_author():
    text = attribution_text(DEMO_FOOTAGE)
    assert "Big Buck Bunny, (c) 2008 Blender Foundation, www.bigbuckbunny.org" in text
    assert "https://creativecommons.org/licenses/by/3.0/" in text
    flat = " ".join(text.split())
    for item in DEMO_FOOTAGE:
        assert item.members[-1] in text
        assert item.package.requirement in text
        assert item.licence in flat
        assert item.attribution in flat
    assert max(map(len, text.splitlines())) <= 120

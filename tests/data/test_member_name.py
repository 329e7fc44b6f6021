import re

import pytest
from webdataset.tariterators import base_plus_ext

from data.member_name import PICKLES, is_pickle, name_problem, split_name


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

"""What the name of a tar member says: its sample's key, its extension, and whether it is hostile."""

import re

from data.shards import check_key

_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
PICKLES = ("pyd", "pickle", "pkl", "pth", "pt", "ckpt", "joblib", "dill")
"""Last extensions of files that many readers unpickle, which runs any code in them."""


def split_name(name: str) -> tuple[str, str]:
    """Key and extension (in small letters) as WebDataset cuts them, at the first dot; `("", "")` without one.

    A leading `./`, which `tar` writes for the current folder, is no part of the key.
    """
    match = _NAME.fullmatch(name.removeprefix("./"))
    return (match[1], match[2].lower()) if match else ("", "")


def is_pickle(extension: str) -> bool:
    """Whether readers of this extension may run code that a file holds."""
    return extension.rsplit(".", 1)[-1] in PICKLES


def name_problem(name: str) -> str | None:
    """What is wrong with a member's name, or None."""
    if name.startswith("/") or ".." in name.split("/") or "\\" in name:
        return "hostile name: it leads out of the folder"
    key, extension = split_name(name)
    if not key:
        return "a member's name must be KEY.EXTENSION"
    if is_pickle(extension):
        return f"pickle member: reading .{extension} may run code in it"
    try:
        check_key(key)
    except ValueError as error:
        return f"bad key: {error}"
    return None

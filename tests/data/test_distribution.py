from PIL import Image

from data.distribution import Distribution
from data.manifest import BucketSize

SIZES = {
    "image-000001-000001": BucketSize(samples=6, tokens=6, shards=1, bytes=1),
    "video-000064-000090": BucketSize(samples=2, tokens=150, shards=2, bytes=1),
}


def test_the_table_has_a_bar_for_each_bucket():
    distribution = Distribution(buckets=SIZES)
    assert (distribution.samples, distribution.tokens) == (8, 156)
    header, image, video = distribution.lines()
    assert image.split() == ["image-000001-000001", "6", "6", "1", "3.8%", "#"]
    assert video.split() == ["video-000064-000090", "2", "150", "2", "96.2%", "#" * 30]
    assert header.startswith("bucket")


def test_the_picture_has_longer_bars_for_more(tmp_path):
    Distribution(buckets=SIZES).save_picture(tmp_path / "p.png", "a set")
    with Image.open(tmp_path / "p.png") as image:
        pixels = image.convert("RGB")
    colours = pixels.getcolors(1 << 20)
    count = {colour: number for number, colour in colours}
    orange, blue = count[(0xD9, 0x77, 0x06)], count[(0x25, 0x63, 0xEB)]
    # Longest bars are alike in both panels: samples are 6 and 2, tokens 6 and 150.
    assert abs(orange / blue - (1 + 6 / 150) / (2 / 6 + 1)) < 0.02

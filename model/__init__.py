"""Networks: the video DiT, the video codecs, the text encoder. Knows nothing of ranks."""

"""From raw clips to packs: ingest, shards, manifest, order, packing, loader."""

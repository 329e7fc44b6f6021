"""The run: wiring, loop, checkpoint, metrics, and the entry points."""

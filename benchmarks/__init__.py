"""Benchmarks of VoxSAM's speed and memory, compared with the released computation on the same weights."""

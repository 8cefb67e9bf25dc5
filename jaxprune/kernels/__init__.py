"""Computations on one array at a time, under ``jit``. Nothing here knows of trees or of files."""

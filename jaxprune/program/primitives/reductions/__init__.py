"""The primitives of reductions."""

"""The primitives of calls."""

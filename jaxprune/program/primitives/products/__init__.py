"""The primitives of products."""

"""The primitives of shapes."""

"""The primitives of indexing."""

"""The primitives of elementwise."""

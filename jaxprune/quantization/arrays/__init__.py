"""What a leaf can be instead of a dense array."""

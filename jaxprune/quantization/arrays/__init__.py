"""What a leaf can be instead of a dense array, all behind one protocol: ``shape``, ``dtype`` and ``dense()``."""

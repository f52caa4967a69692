"""After decoding: error rates, tables, pictures."""

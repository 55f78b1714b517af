"""Which parts of a model compute in 16-bit floating point, and which stay in 32 bits."""

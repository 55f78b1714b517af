"""Rules of fuse-activations, one family per file."""

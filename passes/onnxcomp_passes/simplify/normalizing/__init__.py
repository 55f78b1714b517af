"""Rules of fuse-layernorm: what is a normalization, what it becomes, what goes into its scale and bias."""

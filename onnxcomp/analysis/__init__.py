"""Questions about a model with cached answers; they never change it."""

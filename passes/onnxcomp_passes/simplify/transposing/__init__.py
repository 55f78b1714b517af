"""How operators compute when the dimensions of their tensors stand in another order."""

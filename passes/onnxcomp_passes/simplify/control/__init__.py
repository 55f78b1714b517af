"""What passes know about branches and loops."""

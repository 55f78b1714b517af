"""How constants are found: partly known shape vectors, limits, evaluation in the runtime."""

"""What tests share: models from text, checks of passes, random graphs."""

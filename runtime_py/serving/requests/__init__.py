"""What a request may say, checked."""

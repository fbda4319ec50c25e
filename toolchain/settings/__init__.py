"""What the user can choose, as frozen dataclasses."""

"""What the learned schedule of widths is trained for: the settings of `schedule`."""

"""The source model: its files, names, stored weights, and configuration."""

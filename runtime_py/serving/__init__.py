"""The HTTP server: scheduler (no HTTP), schema (no model), app (joins both), guard and protocol (hostile clients)."""

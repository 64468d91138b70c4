"""sash."""

"""LongLive Mini: a trained miniature of the same architecture, shipped inside the package."""

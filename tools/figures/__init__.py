"""Measured figures of each example, for its pages and the front page."""

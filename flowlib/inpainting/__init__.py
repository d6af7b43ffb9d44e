"""Filling holes with any log-density; inpainter.py brings the Glow in."""

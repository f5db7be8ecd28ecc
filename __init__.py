"""mlc: version control for model weights and for model behaviour."""

__version__ = "0.1.0"

"""HTTP for people and machines that watch us: health and metrics."""

"""What a probe says about wrong input."""


class ProbeError(ValueError):
    """Wrong data or settings for a probe: what is wrong, and what would be right."""

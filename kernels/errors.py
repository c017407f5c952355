"""What this room raises."""


class KernelError(Exception):
    """Arguments that no kernel can work on: shapes, dtypes or devices that do not fit, or k out of range."""

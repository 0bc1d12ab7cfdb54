"""Entry point of `meshd`."""


def main() -> None:
    """Filled by the composition root."""

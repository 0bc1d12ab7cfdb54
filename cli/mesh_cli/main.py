"""Entry point of `mesh`."""


def main() -> None:
    """Filled by the verbs."""

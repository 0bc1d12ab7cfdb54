"""meshd: a private AI compute mesh on the machines an organisation already owns."""

__version__ = "0.1.0"

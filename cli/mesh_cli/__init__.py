"""`mesh`, the client: what a person types. It speaks HTTP to the daemon, or runs the daemon program offline."""

"""Pure rendering: the daemon's JSON pictures in, something to print out. No IO, no clock."""

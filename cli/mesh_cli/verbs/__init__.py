"""One file a verb; each is loaded only when its verb is typed."""

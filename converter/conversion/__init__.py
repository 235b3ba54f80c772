"""One checkpoint, several or a watched folder: looked into, planned, written in another layout, and recorded."""

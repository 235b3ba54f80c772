"""Model folders: what their files are called, which folder is meant, and the config next to the weights."""

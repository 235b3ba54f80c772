"""Model folders: what their files are called, which folder is meant, and the config beside the weights."""

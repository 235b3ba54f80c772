"""Writing a file or folder that appears whole or not at all: target, layout, transfer, publication."""

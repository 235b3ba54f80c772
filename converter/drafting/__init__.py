"""A first draft of a model family out of two lists of keys: what certainly corresponds, and what has to be looked at."""

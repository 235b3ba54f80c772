"""The models that are known, one folder each. None knows another, or the checker."""

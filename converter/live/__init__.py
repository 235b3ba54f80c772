"""Weights in memory: a checkpoint as a model or a pipeline of diffusers, and a model's weights in another layout."""

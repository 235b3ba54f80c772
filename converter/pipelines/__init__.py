"""From a checkpoint to the picture: components, prompts, samplers, memory. Knows no model's name.

Everything is imported where it is first used: what only plans or assembles loads no torch.
"""

"""SANA, SANA-1.5 and SANA-Sprint: their net, stock diffusers' side of it, and what they are compared on."""

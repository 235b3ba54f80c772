"""DiT, class-conditional: its net, stock diffusers' side of it, and what they are compared on."""

"""PixArt: alpha, sigma, delta; its nets, stock diffusers' side of them, and what they are compared on."""

"""The words that may be chosen from, for the flags, the keys of a `parity.toml` and the arguments of `check` alike."""

FLOAT64, FLOAT32 = "float64", "float32"
GATING_PRECISIONS = (FLOAT64, FLOAT32)
HALF = ("float16", "bfloat16")
PRECISIONS = (*GATING_PRECISIONS, *HALF)  # to run the nets in, or that a conversion rounds weights to

PROFILES = ("quick", "standard", "full")
SELF_TESTS = ("quick", "full")
WEIGHTS = ("raw", "ema")
MOST_THREADS = 1024

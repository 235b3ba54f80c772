"""LoRA and its kin: adapters in every spelling, read, written in another, merged into a checkpoint, extracted."""

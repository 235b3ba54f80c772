"""The strict reader of files that torch.save wrote: a zip archive, an inert pickle, the tensors in it."""

"""Floor 0: tensors in, tensors out. Nothing here knows of models, files or history."""

"""Ground floor: tensors in, tensors out; imports torch only."""

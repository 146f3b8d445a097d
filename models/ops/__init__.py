"""Pure functions on tensors: boxes, suppression, masks, resizing."""

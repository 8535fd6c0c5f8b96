"""Networks: encoder, stack of cells, head."""

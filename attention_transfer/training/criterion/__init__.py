"""The criterion: student and teacher run on a batch, and the losses between them."""

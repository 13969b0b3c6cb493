"""Distillation of logits: one loss a file, and what they share."""

"""A pretrained teacher for photos of ants and bees: its weights, and the runs that it is asked for."""

"""What a run starts with: weights of the classes, initial weights of the student, frozen modules."""

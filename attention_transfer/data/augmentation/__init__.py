"""Parts of augmentation: their random numbers, geometry and changes of pixels."""

"""The families of networks, one file each, described as an `Architecture`."""

"""Import paths of existing notebooks; the library is the package `attention_transfer`."""

"""What `make bench` measures side by side: ours, the textbook, and the steps between them."""

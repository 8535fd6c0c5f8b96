"""Messages the load is made of, and a file format for a few of them."""

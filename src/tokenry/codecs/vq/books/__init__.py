"""What is done with a learned book beside looking up the nearest code: its softmax, its nearest few, its loss terms."""

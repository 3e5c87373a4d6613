"""What is known of a training set: its data, what was computed of it, and how that is built."""

"""What comes out: comparisons, the noise floor, reports, and generating again without it."""

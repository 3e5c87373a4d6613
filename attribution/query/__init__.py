"""A picture and its regions, encoded once, and the objects found in it."""

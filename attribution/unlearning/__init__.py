"""The paper: Fisher information, the Newton step (Eq. 4, 5), scores (Eq. 6) and the race."""

"""Speech, music and sound: recordings, models that hear them, voices that speak."""

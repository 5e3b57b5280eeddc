"""Running calibrated methods over a decoder: its layers one by one, then its table and head. Loads torch."""

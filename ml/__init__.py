"""The learning, pure: arrays in, arrays and frozen values out. No I/O, no clock, no environment."""

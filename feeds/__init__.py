"""Candles from outside: files, exchanges, the sample data of a wheel. Reads, checks, never writes."""

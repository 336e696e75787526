"""Kite's live feed: wire format, decoder, client, and the one-packet functions and models."""

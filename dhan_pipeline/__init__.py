"""Tick capture for Indian markets: every byte on disk first, every hour rebuildable from those bytes."""

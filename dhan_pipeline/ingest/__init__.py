"""The running capture: connections -> journal -> decode -> enrich -> store."""

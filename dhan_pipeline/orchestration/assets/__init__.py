"""The assets: what exists, from what it follows, and how a person makes it anew. A module a subject."""

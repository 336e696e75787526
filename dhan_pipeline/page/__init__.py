"""The live page: what is happening now, in a browser. It reads the database, and changes nothing."""

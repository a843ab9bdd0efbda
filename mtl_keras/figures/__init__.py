"""What people look at: maps, objects, curves, and tables as text and as pictures."""

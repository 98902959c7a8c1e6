"""Steering: vectors and their files, plans, where they are added (injection), how they are made (extraction)."""

"""A candidate: its encoder kept or made, placed, and judged."""

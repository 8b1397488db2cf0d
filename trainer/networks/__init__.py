"""The networks that learn, what they are asked to lose, and what keeps them from learning by heart."""

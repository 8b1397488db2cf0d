"""The loops that fit networks to examples, kept against a kill."""

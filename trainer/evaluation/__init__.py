"""What a model foretells of people it never saw: the run, its looks, its checks and its report."""

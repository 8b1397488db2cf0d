"""Every figure in the README comes from here: ratios measured in one run, side by side with peers."""

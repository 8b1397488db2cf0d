"""What every training has: its options, progress, devices, a schedule of steps, and where figures are logged."""

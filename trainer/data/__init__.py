"""From a log, in topics or in a folder, to examples cut from histories by the window code that workers run."""

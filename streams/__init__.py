"""The Faust application: events in, windows kept, profiles out. Nothing else in the project knows Faust."""

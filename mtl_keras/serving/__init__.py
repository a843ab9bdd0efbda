"""What leaves the training machine: predicted maps as files, and SavedModels."""

"""Models: trained, registered, scored."""

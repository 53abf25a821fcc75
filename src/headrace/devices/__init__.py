"""Who may connect: identities and their keys."""

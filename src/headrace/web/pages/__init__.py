"""The pages: a shell from the server (navigation, theme, time zone), filled in by the modules in static/js."""

"""The hub's service API over HTTPS: registry, twins, methods, queries and messages by IoT Hub's paths."""

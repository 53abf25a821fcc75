"""A general MQTT broker beside the hub: any topic, 3.1.1 and 5.0; what a template matches becomes an event."""

"""IoT Hub's conventions on top of MQTT and HTTP: tokens, topics and property bags."""

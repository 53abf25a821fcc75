"""MQTT 3.1.1 as bytes: frames, packets and the server's side of a connection. No sockets, no clock."""

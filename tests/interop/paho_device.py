"""Run by the SDK's own Python: paho-mqtt 1.6 as a device. Arguments: port, user name, client id, token, messages."""

import sys
import threading
from typing import Any

import paho.mqtt.client as mqtt


def main(port: int, user_name: str, client_id: str, token: str, count: int) -> int:
    client = mqtt.Client(client_id=client_id, clean_session=False, protocol=mqtt.MQTTv311)
    client.username_pw_set(user_name, token)
    client.max_inflight_messages_set(20)
    codes: list[int] = []
    granted: list[tuple[int, ...]] = []
    connected, subscribed = threading.Event(), threading.Event()

    def on_connect(client: Any, userdata: Any, flags: Any, code: int) -> None:
        codes.append(code)
        connected.set()

    def on_subscribe(client: Any, userdata: Any, mid: int, qos: tuple[int, ...]) -> None:
        granted.append(qos)
        subscribed.set()

    client.on_connect, client.on_subscribe = on_connect, on_subscribe
    client.connect("127.0.0.1", port, keepalive=30)
    client.loop_start()
    if not connected.wait(10) or codes[0]:
        print("refused", codes)
        return 3
    client.subscribe([(f"devices/{client_id}/messages/devicebound/#", 2), ("#", 0)])
    subscribed.wait(10)
    for number in range(count):
        topic = f"devices/{client_id}/messages/events/$.mid=p{number}"
        client.publish(topic, f"body {number}", qos=1).wait_for_publish(10)
    client.publish(f"devices/{client_id}/messages/events/", b"\x00\xff binary", qos=0)
    client.publish(f"devices/{client_id}/messages/events/", b"last", qos=1).wait_for_publish(10)
    client.disconnect()
    client.loop_stop()
    print("granted", granted)
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5])))

// Loaded before the SDKs: their ports 8883 and 443 are literals, so connections to them go to the hub's own. Names, SNI and
// tokens stay as they are.
'use strict';
const net = require('net');

const ports = { 8883: Number(process.env.HUB_MQTT_PORT), 443: Number(process.env.HUB_HTTPS_PORT) };
const connect = net.Socket.prototype.connect;

net.Socket.prototype.connect = function (...args) {
  const options = Array.isArray(args[0]) ? args[0][0] : args[0];
  if (options && ports[options.port]) {
    options.port = ports[options.port];
    options.host = '127.0.0.1';
  }
  return connect.apply(this, args);
};

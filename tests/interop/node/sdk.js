// The official Node SDKs against a hub. Arguments: what to do, then JSON {hub, service, scope, registrationId, key}. Prints one
// JSON object of what it saw. The CA comes in NODE_EXTRA_CA_CERTS, as for any user.
'use strict';
const { Client, Message } = require('azure-iot-device');
const { Mqtt, MqttWs } = require('azure-iot-device-mqtt');
const { Registry, Client: ServiceClient } = require('azure-iothub');

const WAIT_MS = 20000;

function within(promise, what) {
  const late = new Promise((_, reject) => setTimeout(() => reject(new Error(`${what}: nothing came`)), WAIT_MS).unref());
  return Promise.race([promise, late]);
}

async function failure(work) {
  try {
    await work();
    return null;
  } catch (error) {
    return [error.name, error.message, error.response ? error.response.statusCode : 0];
  }
}

// A promise of the first value that a callback gets, and the callback.
function once() {
  let resolve;
  const promise = new Promise((done) => { resolve = done; });
  return [promise, resolve];
}

const twinOf = (client) => new Promise((resolve, reject) => client.getTwin((error, twin) => (error ? reject(error) : resolve(twin))));
const report = (twin, patch) => new Promise((resolve, reject) => twin.properties.reported.update(patch, (error) => (error ? reject(error) : resolve())));

async function device(plan, registry) {
  const made = (await registry.create({ deviceId: 'node-1' })).responseBody;
  const key = made.authentication.symmetricKey.primaryKey;
  const Transport = plan.transport === 'ws' ? MqttWs : Mqtt;
  const client = Client.fromConnectionString(`HostName=${plan.hub};DeviceId=node-1;SharedAccessKey=${key}`, Transport);
  const seen = {};
  await within(client.open(), 'open');

  const message = new Message(JSON.stringify({ temperature: 21.5 }));
  message.messageId = 'm-1';
  message.contentType = 'application/json';
  message.contentEncoding = 'utf-8';
  message.properties.add('level', 'a b/ü&=?');
  await within(client.sendEvent(message), 'sendEvent');

  const twin = await within(twinOf(client), 'getTwin');
  seen.fresh = [twin.properties.desired.$version, twin.properties.reported.$version];
  await within(report(twin, { fan: { speed: 3 } }), 'reported');
  const [patched, onPatch] = once();
  twin.on('properties.desired', (delta) => { if (delta.interval) onPatch(delta); });
  const service = (await registry.getTwin('node-1')).responseBody;
  seen.reported = service.properties.reported.fan;
  await registry.updateTwin('node-1', { tags: { floor: 4 }, properties: { desired: { interval: 5 } } }, service.etag);
  const delta = await within(patched, 'desired patch');
  seen.desired = [delta.interval, delta.$version];
  seen.stale = await failure(() => registry.updateTwin('node-1', { tags: { floor: 5 } }, service.etag));

  const asked = [];
  client.onDeviceMethod('reboot', (request, response) => {
    asked.push(request.payload);
    response.send(202, { did: request.methodName }, () => {});
  });
  const caller = ServiceClient.fromConnectionString(plan.service);
  // The SDK subscribes behind the back of onDeviceMethod: the connect timeout waits for that.
  const how = { methodName: 'reboot', responseTimeoutInSeconds: 10, connectTimeoutInSeconds: 10 };
  const first = await within(caller.invokeDeviceMethod('node-1', { ...how, payload: { in: [1] } }), 'method');
  const second = await within(caller.invokeDeviceMethod('node-1', { ...how, payload: null }), 'method');
  seen.methods = [first.result, second.result, asked];

  const [mailed, onMail] = once();
  client.on('message', (mail) => client.complete(mail, () => onMail(mail)));
  await within(new Promise((resolve, reject) => registry._restApiClient.executeApiCall(
    'POST', '/devices/node-1/messages/devicebound?api-version=2021-04-12',
    { 'Content-Type': 'application/json; charset=utf-8', 'IoTHub-MessageId': 'c-1', 'iothub-app-kind': 'note' },
    { open: true }, (error) => (error ? reject(error) : resolve()))), 'send');
  const mail = await within(mailed, 'mail');
  seen.mail = [JSON.parse(mail.getData().toString()), mail.messageId, mail.properties.getValue('kind')];

  await client.close();
  seen.offline = await failure(() => caller.invokeDeviceMethod('node-1', { methodName: 'x', responseTimeoutInSeconds: 5 }));
  return seen;
}

async function registry(plan, hub) {
  const seen = {};
  const many = Array.from({ length: 5 }, (_, number) => ({ deviceId: `n${number}`, status: number === 4 ? 'disabled' : 'enabled' }));
  const added = (await hub.addDevices(many)).responseBody;
  seen.added = [added.isSuccessful, added.errors.length];
  seen.twice = await failure(() => hub.create({ deviceId: 'n0' }));
  seen.missing = await failure(() => hub.get('nobody'));
  const known = (await hub.get('n1')).responseBody;
  const changed = (await hub.update({ deviceId: 'n1', statusReason: 'worn', status: 'disabled' })).responseBody;
  seen.changed = [known.status, changed.status, changed.statusReason];
  const module_ = (await hub.addModule({ deviceId: 'n1', moduleId: 'vision' })).responseBody;
  seen.module = [module_.moduleId, (await hub.getModulesOnDevice('n1')).responseBody.length];
  await hub.removeModule('n1', 'vision');
  const query = hub.createQuery("SELECT * FROM devices WHERE status = 'enabled'", 2);
  seen.pages = [];
  while (query.hasMoreResults) {
    const page = (await query.nextAsTwin()).result;
    seen.pages.push(page.map((twin) => twin.deviceId));
  }
  seen.bad = (await failure(() => hub.createQuery('SELECT FROM nowhere at all').nextAsTwin())).slice(0, 1);
  const removed = (await hub.removeDevices(many.slice(2), true)).responseBody;
  await hub.delete('n0');
  seen.left = [removed.isSuccessful, (await hub.list()).responseBody.map((one) => one.deviceId)];
  const statistics = (await hub.getRegistryStatistics()).responseBody;
  seen.statistics = [statistics.totalDeviceCount, statistics.enabledDeviceCount, statistics.disabledDeviceCount];
  return seen;
}

async function refused(plan) {
  const client = Client.fromConnectionString(`HostName=${plan.hub};DeviceId=${plan.device};SharedAccessKey=${plan.key}`, Mqtt);
  const said = await failure(() => within(client.open(), 'open'));
  client.removeAllListeners();
  return { said: said && said.slice(0, 2) };
}

async function provisioning(plan) {
  const { Mqtt: ProvisioningMqtt } = require('azure-iot-provisioning-device-mqtt');
  const { ProvisioningDeviceClient } = require('azure-iot-provisioning-device');
  const { SymmetricKeySecurityClient } = require('azure-iot-security-symmetric-key');
  const security = new SymmetricKeySecurityClient(plan.registrationId, plan.key);
  const desk = ProvisioningDeviceClient.create(plan.hub, plan.scope, new ProvisioningMqtt(), security);
  desk.setProvisioningPayload({ model: 'press' });
  const result = await within(desk.register(), 'register');
  const client = Client.fromConnectionString(
    `HostName=${result.assignedHub};DeviceId=${result.deviceId};SharedAccessKey=${plan.key}`, Mqtt);
  await within(client.open(), 'open');
  await within(client.sendEvent(new Message('{"provisioned":true}')), 'sendEvent');
  await client.close();
  return { status: result.status, device: result.deviceId, hub: result.assignedHub };
}

async function main() {
  const [what, text] = process.argv.slice(2);
  const plan = JSON.parse(text);
  const work = { device, registry, refused, provisioning }[what];
  const hub = plan.service ? Registry.fromConnectionString(plan.service) : null;
  process.stdout.write(`${JSON.stringify(await work(plan, hub))}\n`, () => process.exit(0));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});

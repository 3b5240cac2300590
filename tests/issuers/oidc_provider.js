// A real OIDC issuer on loopback with TLS, for tests: npm's oidc-provider with its development login pages.
//
// Reads its configuration from the first line of standard input, as JSON: `tls` (a PEM file with key and certificate),
// `clients` (client ids), `groups` (of each account, by name), `seconds` (lifetimes by kind of token).
// Writes {"url": ...}, and a line after each further command: `publish` makes a key public, `sign` signs with the
// newest key, `withdraw` removes all other keys, `register` and the metadata of a client in JSON adds this client. Ends
// at the end of standard input.

import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';

// The package is installed in the current folder, away from this file.
const installed = createRequire(pathToFileURL(`${process.cwd()}/`));
const { Provider } = await import(pathToFileURL(installed.resolve('oidc-provider')));

const LOOPBACK = ['http://127.0.0.1', 'http://[::1]', 'http://localhost'];
const DEVICE = 'urn:ietf:params:oauth:grant-type:device_code';

// Standard output is for answers.
console.info = console.error;

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const say = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);

function newKey() {
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  return { ...privateKey.export({ format: 'jwk' }), kid: randomUUID(), use: 'sig', alg: 'ES256' };
}

function client(id) {
  return {
    client_id: id,
    application_type: 'native', // which allows every port on loopback
    token_endpoint_auth_method: 'none',
    grant_types: ['authorization_code', 'refresh_token', DEVICE],
    response_types: ['code'],
    redirect_uris: LOOPBACK.flatMap((origin) => [`${origin}/`, `${origin}/callback`]),
    id_token_signed_response_alg: 'ES256',
  };
}

// Shared by all instances, so that a rotation of keys ends no session. Instances look at the expiry themselves.
const stored = new Map();

function adapter(model) {
  const key = (id) => `${model}:${id}`;
  const where = (field, value) => [...stored].find(([name, each]) => name.startsWith(key('')) && each[field] === value)?.[1];
  return {
    upsert: async (id, payload) => { stored.set(key(id), payload); },
    find: async (id) => stored.get(key(id)),
    findByUid: async (uid) => where('uid', uid),
    findByUserCode: async (code) => where('userCode', code),
    consume: async (id) => { stored.get(key(id)).consumed = Math.floor(Date.now() / 1000); },
    destroy: async (id) => { stored.delete(key(id)); },
    revokeByGrantId: async (grant) => {
      for (const [name, each] of stored) if (each.grantId === grant) stored.delete(name);
    },
  };
}

// Besides the native clients.
const registered = [];

// The first key signs.
function provider(url, { clients, groups, seconds }, keys) {
  const made = new Provider(url, {
    adapter,
    jwks: { keys },
    clients: [...clients.map(client), ...registered],
    cookies: { keys: ['only-for-tests'] },
    claims: { openid: ['sub'], profile: ['name', 'preferred_username'], groups: ['groups'] },
    conformIdTokenClaims: false, // or the claims of scopes would not be in ID tokens
    scopes: ['openid', 'offline_access'],
    features: {
      deviceFlow: { enabled: true },
      revocation: { enabled: true },
      backchannelLogout: { enabled: true },
      // Access tokens for a resource (RFC 8707) are JWTs for it.
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (_, resource) => ({
          audience: resource, scope: 'openid profile groups', accessTokenFormat: 'jwt', jwt: { sign: { alg: 'ES256' } },
        }),
        useGrantedResource: () => true,
      },
    },
    pkce: { required: () => true },
    // Without the dispatcher, which refuses addresses on loopback, and without the signal, which ends requests after
    // 2.5 seconds: a logout would be lost on a slow machine.
    fetch: (address, { dispatcher, signal, ...options }) => fetch(address, options),
    ttl: { IdToken: 600, AccessToken: 600, RefreshToken: 86400, Session: 86400, Grant: 86400, ...seconds },
    issueRefreshToken: (_, { grantTypes }) => grantTypes.includes('refresh_token'),
    rotateRefreshToken: true,
    findAccount: (_, id) => ({
      accountId: id,
      claims: () => ({ sub: id, name: `${id} example`, preferred_username: id, groups: groups[id] ?? [] }),
    }),
  });
  made.on('server_error', (_, error) => console.error(error));
  made.on('backchannel.error', (_, error) => console.error(error));
  made.on('grant.error', (_, error) => console.error(error.error_detail ?? error));
  return made.callback();
}

const configuration = JSON.parse((await lines.next()).value);
const pem = readFileSync(configuration.tls);
let handler;
const server = createServer({ key: pem, cert: pem }, (request, response) => handler(request, response));
await new Promise((listening) => { server.listen(0, '127.0.0.1', listening); });
const url = `https://127.0.0.1:${server.address().port}`;

let keys = [newKey()];
const commands = {
  publish: () => { keys = [...keys, newKey()]; },
  sign: () => { keys = [keys.at(-1), ...keys.slice(0, -1)]; },
  withdraw: () => { keys = keys.slice(0, 1); },
  register: (metadata) => { registered.push(JSON.parse(metadata)); },
};
handler = provider(url, configuration, keys);
say({ url });
for (let line = await lines.next(); !line.done; line = await lines.next()) {
  const [name, ...rest] = line.value.split(' ');
  commands[name](rest.join(' '));
  handler = provider(url, configuration, keys);
  say({ done: name });
}
process.exit(0);

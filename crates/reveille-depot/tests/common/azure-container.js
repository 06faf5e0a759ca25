// Makes a container in Azurite, whose account and key are the ones that everybody knows.
//   node azure-container.js PORT CONTAINER
const http = require('http');
const crypto = require('crypto');

const [port, container] = process.argv.slice(2);
const account = 'devstoreaccount1';
const key = 'Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==';
const headers = { 'x-ms-date': new Date().toUTCString(), 'x-ms-version': '2021-12-02' };
const named = Object.keys(headers).sort().map((name) => `${name}:${headers[name]}`).join('\n');
const text = `PUT${'\n'.repeat(12)}${named}\n/${account}/${account}/${container}\nrestype:container`;
const mac = crypto.createHmac('sha256', Buffer.from(key, 'base64')).update(text).digest('base64');
headers.Authorization = `SharedKey ${account}:${mac}`;
headers['Content-Length'] = 0;
const options = { host: '127.0.0.1', port, method: 'PUT', path: `/${account}/${container}?restype=container`, headers };
http.request(options, (answer) => {
  console.error(answer.statusCode);
  process.exit(answer.statusCode === 201 ? 0 : 1);
}).end();

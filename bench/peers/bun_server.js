// Bun's built-in publish, which is uWebSockets' topic tree: batches per client and turn of its loop, in C++.
//   bun bun_server.js PORT REDIS_HOST REDIS_PORT
import { isAscii } from "node:buffer";

const [port, redisHost, redisPort] = process.argv.slice(2);

const server = Bun.serve({
  port: Number(port),
  hostname: "127.0.0.1",
  development: false,
  fetch(request, server) {
    const topic = request.url.slice(request.url.lastIndexOf("/") + 1);
    if (server.upgrade(request, { data: topic })) return;
    return new Response("websockets only", { status: 426 });
  },
  websocket: {
    perMessageDeflate: false,
    idleTimeout: 120,
    backpressureLimit: 64 << 20, // kept as long as anyone could bear it: nothing may be lost
    open(ws) {
      ws.subscribe(ws.data);
    },
    message() {},
  },
});

// Redis: one connection, every channel. Parsed as latin1, one character a byte: one native call for each read, where a
// Buffer costs ten for each message. What is not ASCII is decoded again, alone.
let rest = "";
let ascii = true; // is all of rest

function take(bytes) {
  ascii = isAscii(bytes) && (ascii || rest === "");
  const text = rest + bytes.latin1Slice();
  let at = 0;
  for (let end; (end = reply(text, at)) > 0; ) at = end;
  rest = at ? text.slice(at) : text;
}

const from = [0, 0, 0, 0];
const to = [0, 0, 0, 0];

// Where the reply at `at` ends, or 0 while it is not whole. An array of four is a pmessage.
function reply(text, at) {
  let eol = text.indexOf("\n", at);
  if (eol < 0) return 0;
  const parts = text.charCodeAt(at + 1) - 48;
  for (let part = 0; part < parts; part++) {
    const start = eol + 1;
    eol = text.indexOf("\n", start);
    if (eol < 0) return 0;
    if (text.charCodeAt(start) === 58) continue; // an integer, in the answer to PSUBSCRIBE
    from[part] = eol + 1;
    to[part] = eol + 1 + Number(text.slice(start + 1, eol - 1));
    eol = to[part] + 1;
    if (eol >= text.length) return 0;
  }
  if (parts === 4) forward(text.slice(from[2], to[2]), text.slice(from[3], to[3]));
  return eol + 1;
}

function forward(channel, data) {
  if (!ascii) data = Buffer.from(data, "latin1").utf8Slice();
  server.publish(channel, `{"type":"status","data":${JSON.stringify(data)}}`);
}

await Bun.connect({
  hostname: redisHost,
  port: Number(redisPort),
  socket: {
    binaryType: "buffer",
    open(socket) {
      socket.write("PSUBSCRIBE *\r\n");
    },
    data(_, bytes) {
      take(bytes);
    },
    close() {
      process.exit(1);
    },
  },
});

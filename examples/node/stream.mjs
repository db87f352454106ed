// Ask a fleet and print the answer token by token, with node-redis: XADD, then XREAD.
//
//     npm install && node stream.mjs "The capital of France is"

import { randomUUID } from "node:crypto";
import { createClient } from "redis";

const url = process.env.REDIS_URL ?? "redis://127.0.0.1:6380/0";
const prefix = `hr:{${process.env.QUEUE ?? "smollm2-135m"}}:`;

const request = { id: randomUUID(), prompt: process.argv[2], max_tokens: 32, temperature: 0 };
const out = `${prefix}out:${request.id}`;

const client = await createClient({ url }).on("error", (error) => console.error(error.message)).connect();
await client.xAdd(`${prefix}requests`, "*", { id: request.id, json: JSON.stringify(request) });

// An entry's id is the number of tokens written once it is in: there is nothing else to remember.
let position = "0";
let done;
while (!done) {
  const streams = (await client.xRead({ key: out, id: position }, { BLOCK: 5000 })) ?? [];
  for (const { id, message } of streams.flatMap((stream) => stream.messages)) {
    const chunk = JSON.parse(message.json);
    process.stdout.write(chunk.text);
    position = id;
    done = chunk.done;
  }
}
client.destroy();

console.log();
console.error(done.reason, done.error?.message ?? done.usage);
process.exitCode = done.reason === "error" ? 1 : 0;

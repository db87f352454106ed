// The same through the result's channel: subscribe, then add. The stream is the truth, and fills every gap.
//
//     npm install && node subscribe.mjs "The capital of France is"

import { randomUUID } from "node:crypto";
import { createClient } from "redis";

const url = process.env.REDIS_URL ?? "redis://127.0.0.1:6380/0";
const prefix = `hr:{${process.env.QUEUE ?? "smollm2-135m"}}:`;
// After so long without a chunk, one may have been lost: a channel keeps nothing for a connection that broke.
const silenceMs = 2000;

const request = { id: randomUUID(), prompt: process.argv[2], max_tokens: 32, temperature: 0 };
const out = `${prefix}out:${request.id}`;

// What has been printed; chunks are printed once, whichever way and however often they come.
let numTokens = 0;
let numChars = 0;
let done;

// Prints what is new of a chunk; false if there is a gap before it. `i` counts tokens, `o` code points.
function take(chunk) {
  if (chunk.i > numTokens) return false;
  const characters = [...chunk.text];
  process.stdout.write(characters.slice(Math.max(0, numChars - chunk.o)).join(""));
  numTokens = Math.max(numTokens, chunk.i + chunk.ids.length);
  numChars = Math.max(numChars, chunk.o + characters.length);
  done = chunk.done ?? done;
  return true;
}

const client = await createClient({ url }).on("error", (error) => console.error(error.message)).connect();
const channel = await client.duplicate().on("error", (error) => console.error(error.message)).connect();

// Messages that wait to be taken, and what wakes the loop that takes them.
const messages = [];
let wake = () => {};
await channel.subscribe(out, (message) => {
  messages.push(message);
  wake();
}); // the server has confirmed it: from here on nothing is missed
await client.xAdd(`${prefix}requests`, "*", { id: request.id, json: JSON.stringify(request) });

while (!done) {
  if (messages.length === 0) {
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, silenceMs);
      wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
  const message = messages.shift();
  if (message === undefined || !take(JSON.parse(message))) {
    for (const entry of await client.xRange(out, `(${numTokens}-0`, "+")) take(JSON.parse(entry.message.json));
  }
}
channel.destroy();
client.destroy();

console.log();
console.error(done.reason, done.error?.message ?? done.usage);
process.exitCode = done.reason === "error" ? 1 : 0;

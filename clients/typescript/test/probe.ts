/**
 * Runs calls of the client for tests/contract/test_typescript_client.py. Reads one call per line from stdin:
 * {"address": ..., "client": {...}, "call": "stream", "options": {...}, "leaveAfter": 1}. Prints the results of each as
 * JSON lines, then a line "end".
 */
import process from "node:process";
import { createInterface } from "node:readline";

import { Client, type ClientOptions, type Options, PresiftError } from "../src/index.js";

interface Probe {
  readonly address: string;
  readonly client?: ClientOptions;
  readonly call: "stream" | "generate" | "explain" | "info";
  readonly options?: Options;
  /** Leaves the stream after this many events, by breaking the loop or by aborting the signal. */
  readonly leaveAfter?: number;
  readonly leaveBy?: "break" | "abort";
}

const print = (value: unknown) => console.log(JSON.stringify(value, (_, each) => (each === undefined ? null : each)));

async function main(probe: Probe): Promise<void> {
  const client = new Client(probe.address, probe.client);
  try {
    if (probe.call === "info") print(await client.info());
    else if (probe.call === "explain") print(await client.explain(probe.options ?? {}));
    else if (probe.call === "generate") print(await client.generate(probe.options ?? {}));
    else await stream(client, probe);
  } catch (error) {
    print(plain(error));
  }
  client.close();
}

async function stream(client: Client, { options = {}, leaveAfter, leaveBy = "break" }: Probe): Promise<void> {
  const abort = new AbortController();
  let seen = 0;
  for await (const event of client.stream({ ...options, signal: abort.signal })) {
    print(event);
    if (++seen !== leaveAfter) continue;
    if (leaveBy === "break") break;
    abort.abort();
  }
  print("left");
}

function plain(error: unknown): object {
  if (!(error instanceof PresiftError)) return { error: String(error) };
  return { ...error, error: error.constructor.name, message: error.message };
}

for await (const line of createInterface({ input: process.stdin })) {
  await main(JSON.parse(line));
  print("end");
}

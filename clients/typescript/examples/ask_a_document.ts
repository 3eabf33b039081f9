/**
 * Ask a question about a text file, and see what presift did:
 * node dist/examples/ask_a_document.js FILE QUESTION [ADDRESS]
 */
import { readFile } from "node:fs/promises";
import process from "node:process";

import { Client, type ChatMessage, PresiftError } from "../src/index.js";

async function main(path: string, question: string, address = "127.0.0.1:50051"): Promise<number> {
  const document = await readFile(path, "utf8");
  const messages: ChatMessage[] = [
    { role: "system", content: "Answer from the document, in one sentence." }, // never dropped
    {
      role: "user",
      content: [
        { text: document, document: true }, // may be dropped
        { text: `\n\n${question}` }, // never dropped, because a document is marked
      ],
    },
  ];
  const client = new Client(address);
  try {
    for await (const event of client.stream({
      messages,
      maxPromptTokens: 512,
      maxNewTokens: 48,
      deadlineMs: 300_000,
    })) {
      if (event.kind === "delta") process.stdout.write(event.text);
      else if (event.kind === "usage") console.log(`\nfirst token after ${event.ttftMs.toFixed(0)} ms`);
      else console.log(`${event.route}, kept ${event.keptTokens} of ${event.promptTokens}: ${event.detail}`);
    }
    return 0;
  } catch (error) {
    if (!(error instanceof PresiftError)) throw error;
    console.error(`${error.code}: ${error.message}`);
    return 1;
  } finally {
    client.close();
  }
}

const [path, question, address] = process.argv.slice(2);
if (path === undefined || question === undefined) {
  console.error("usage: ask_a_document.js FILE QUESTION [ADDRESS]");
  process.exitCode = 2;
} else {
  process.exitCode = await main(path, question, address);
}

// What the tests of both libraries share; the Python tests have the same values in shared.py.
import { z } from "zod";

export const server = process.env.PRESIFT_URL;
export const MODEL = "scripted";
export const HELLO = "Hello there.";
export const SUM_ANSWER = "The tool said 5.";
export const TOO_LONG = "word ".repeat(20_000);
export const Person = z.object({ name: z.string(), age: z.number().int() });
export const PERSON = { name: "Ada", age: 36 };

/** The user's message whose answer is `text`. */
export const say = (text) => `Reply with exactly ${JSON.stringify(text)}`;

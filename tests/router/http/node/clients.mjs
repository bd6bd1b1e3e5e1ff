// The cases of both clients in one process: node clients.mjs URL
import "./openai.mjs";
import "./anthropic.mjs";

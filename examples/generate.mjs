// Asks a router one question and prints the answer as it streams.
//
// npm ci && node generate.mjs [ADDRESS] [QUESTION]
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const [address = "127.0.0.1:50050", question = "introduce yourself"] = process.argv.slice(2);
const proto = new URL("../protos/pagestream/router/v1/router.proto", import.meta.url);
const definition = protoLoader.loadSync(fileURLToPath(proto), { defaults: true });
const { RouterService } = grpc.loadPackageDefinition(definition).pagestream.router.v1;

const client = new RouterService(address, grpc.credentials.createInsecure());
const call = client.generate(
  {
    chat: { messages: [{ role: "user", content: question }] },
    samplingParams: { temperature: 0.6, maxTokens: 256 },
  },
  { deadline: Date.now() + 60_000 },
);
try {
  for await (const response of call) process.stdout.write(response.text);
  console.log();
} catch (error) {
  console.error(`${grpc.status[error.code] ?? error.name}: ${error.details ?? error.message}`);
  process.exitCode = 1;
} finally {
  call.cancel();
  client.close();
}

// Runs Node.js handlers by the Lambda Runtime API, with nothing but Node itself: what `runtime = "nodejs"` starts.
"use strict";

const fs = require("node:fs");
const http = require("node:http");
const path = require("node:path");
const { Writable } = require("node:stream");
const { pathToFileURL } = require("node:url");

const [HOST, PORT] = process.env.AWS_LAMBDA_RUNTIME_API.split(":");
const ROOT = process.env.LAMBDA_TASK_ROOT || process.cwd();
const STREAMS = Symbol.for("aws.lambda.runtime.handler.streaming");
const ERROR_TYPE = "Lambda-Runtime-Function-Error-Type";
const MODE = "Lambda-Runtime-Function-Response-Mode";
// Its free sockets keep no process alive, so an empty event loop can be told.
const agent = new http.Agent({ keepAlive: true });

globalThis.awslambda = {
  streamifyResponse(handler, options) {
    handler[STREAMS] = "response";
    return handler;
  },
  HttpResponseStream: {
    // The head of an HTTP answer goes before its body, eight zero bytes between them.
    from(stream, head) {
      stream.setContentType("application/vnd.awslambda.http-integration-response");
      stream.write(JSON.stringify(head) + "\0".repeat(8));
      return stream;
    },
  },
};

function open(method, target, headers, answered, failed) {
  const options = { host: HOST, port: PORT, agent, method, path: `/2018-06-01/runtime/${target}`, headers };
  const request = http.request(options, (response) => {
    const chunks = [];
    response.on("data", (chunk) => chunks.push(chunk));
    response.on("error", failed);
    response.on("end", () => answered({ status: response.statusCode, headers: response.headers, body: Buffer.concat(chunks) }));
  });
  request.on("error", failed);
  return request;
}

function ask(method, target, body = "", headers = {}) {
  const data = Buffer.from(body);
  const all = method === "GET" ? headers : { "Content-Type": "application/json", "Content-Length": data.length, ...headers };
  return new Promise((answered, failed) => open(method, target, all, answered, failed).end(data));
}

// Errors, as Lambda tells them

function named(kind, message, cause) {
  const error = new Error(message);
  error.name = kind;
  if (cause && cause.stack) error.stack = `${kind}: ${cause.stack}`;
  return error;
}

function told(error) {
  const isError = error instanceof Error || (error && typeof error === "object" && "message" in error && "stack" in error);
  if (!isError) return { errorType: error === null ? "object" : typeof error, errorMessage: String(error), trace: [] };
  return { errorType: error.name || "Error", errorMessage: String(error.message), trace: traceOf(error) };
}

// Without the frames of this file
function traceOf(error) {
  return String(error.stack || "").split("\n").filter((line) => !line.includes(__filename));
}

function report(target, error) {
  const body = told(error);
  console.error(body.trace.join("\n") || body.errorMessage);
  return ask("POST", target, JSON.stringify(body), { [ERROR_TYPE]: body.errorType.replace(/[^\x21-\x7e]/g, "?") });
}

// The handler

async function load(handler) {
  const folder = path.dirname(handler);
  const found = /^([^.]+)\.(.+)$/.exec(path.basename(handler));
  if (!found || handler.includes("..")) {
    throw named("Runtime.MalformedHandlerName", `Bad handler '${handler}': it is FILE.FUNCTION, as in index.handler`);
  }
  const [, name, nested] = found;
  let value = await importFile(path.resolve(ROOT, folder, name), name);
  for (const part of nested.split(".")) value = value === null || value === undefined ? undefined : value[part];
  if (value === undefined) throw named("Runtime.HandlerNotFound", `${handler} is undefined or not exported`);
  if (typeof value !== "function") throw named("Runtime.HandlerNotFound", `${handler} is not a function`);
  return value;
}

async function importFile(stem, name) {
  const file = ["", ".js", ".mjs", ".cjs"].map((end) => stem + end).find((each) => fs.existsSync(each) && fs.statSync(each).isFile());
  try {
    if (file === undefined) return require(require.resolve(name, { paths: [ROOT] }));
    if (file.endsWith(".mjs")) return await import(pathToFileURL(file));
    try {
      return require(file);
    } catch (error) {
      // "type": "module" in a package.json, or `await` outside of functions
      if (error.code === "ERR_REQUIRE_ESM" || error.code === "ERR_REQUIRE_ASYNC_MODULE") return await import(pathToFileURL(file));
      throw error;
    }
  } catch (error) {
    if (error instanceof SyntaxError) throw named("Runtime.UserCodeSyntaxError", `SyntaxError: ${error.message}`, error);
    if (error && (error.code === "MODULE_NOT_FOUND" || error.code === "ERR_MODULE_NOT_FOUND")) {
      throw named("Runtime.ImportModuleError", `Error: ${error.message}`, error);
    }
    throw error;
  }
}

// One invocation

let current = null; // its id, until it is answered
let whenIdle = null; // what is to be done when nothing is left to wait for

function makeContext({ headers }) {
  const json = (name) => (headers[name] ? JSON.parse(headers[name]) : undefined);
  const deadline = Number(headers["lambda-runtime-deadline-ms"]);
  return {
    awsRequestId: headers["lambda-runtime-aws-request-id"],
    invokedFunctionArn: headers["lambda-runtime-invoked-function-arn"],
    clientContext: json("lambda-runtime-client-context"),
    identity: json("lambda-runtime-cognito-identity"),
    functionName: process.env.AWS_LAMBDA_FUNCTION_NAME,
    functionVersion: process.env.AWS_LAMBDA_FUNCTION_VERSION,
    memoryLimitInMB: process.env.AWS_LAMBDA_FUNCTION_MEMORY_SIZE,
    logGroupName: process.env.AWS_LAMBDA_LOG_GROUP_NAME,
    logStreamName: process.env.AWS_LAMBDA_LOG_STREAM_NAME,
    callbackWaitsForEmptyEventLoop: true,
    getRemainingTimeInMillis: () => Math.max(0, deadline - Date.now()),
  };
}

// What the handler comes to: of its promise, its callback, or neither when there is nothing left that it could wait for.
function run(handler, event, context) {
  return new Promise((done, failed) => {
    const later = (error, result) => (error !== null && error !== undefined ? failed(error) : done(result));
    const callback = (error, result) => {
      if (!context.callbackWaitsForEmptyEventLoop || error) later(error, result);
      else whenIdle = () => done(result);
    };
    context.done = callback;
    context.succeed = (result) => later(null, result);
    context.fail = (error) => failed(error === undefined ? new Error("handled") : error);
    whenIdle = () => done(null);
    const result = handler(event, context, callback);
    if (result && typeof result.then === "function") result.then(done, failed);
  });
}

async function answerWhole(handler, id, event, context) {
  const result = await run(handler, event, context);
  let body;
  try {
    body = JSON.stringify(result === undefined ? null : result);
    if (body === undefined) throw new TypeError(`${typeof result} is no JSON`);
  } catch (error) {
    throw named("Runtime.MarshalError", `Unable to marshal response: ${error.message}`, error);
  }
  current = null;
  await ask("POST", `invocation/${id}/response`, body);
}

class ResponseStream extends Writable {
  constructor(id) {
    super();
    this.kind = "application/octet-stream";
    this.id = id;
    this.answered = new Promise((done, failed) => Object.assign(this, { _done: done, _failed: failed }));
    this.answered.catch(() => {}); // who waits for it hears it
  }

  setContentType(kind) {
    this.kind = kind;
  }

  _open() {
    if (this.request) return;
    const headers = { "Content-Type": this.kind, [MODE]: "streaming", "Transfer-Encoding": "chunked", Trailer: `${ERROR_TYPE}, ${ERROR_BODY}` };
    this.request = open("POST", `invocation/${this.id}/response`, headers, this._done, this._failed);
  }

  _write(chunk, encoding, written) {
    this._open();
    this.request.write(chunk, encoding, written);
  }

  _final(ended) {
    this._open();
    this.request.end(ended);
  }

  // An error amid the answer: its place is behind it.
  fail(error) {
    const body = told(error);
    this.request.addTrailers({
      [ERROR_TYPE]: body.errorType.replace(/[^\x21-\x7e]/g, "?"),
      [ERROR_BODY]: Buffer.from(JSON.stringify({ ...body, trace: body.trace.slice(0, 20) })).toString("base64"),
    });
    this.request.end();
  }
}

const ERROR_BODY = "Lambda-Runtime-Function-Error-Body";

async function answerStreamed(handler, id, event, context) {
  const stream = new ResponseStream(id);
  const ended = new Promise((done, failed) => stream.on("finish", done).on("error", failed));
  try {
    await new Promise((done, failed) => {
      whenIdle = () => failed(named("Runtime.StreamNotEnded", "the handler has nothing to wait for, and has not ended its stream"));
      ended.then(done, failed);
      Promise.resolve(handler(event, stream, context)).catch(failed);
    });
  } catch (error) {
    if (!stream.request) throw error;
    console.error(told(error).trace.join("\n"));
    stream.fail(error);
  }
  await stream.answered;
  current = null;
}

async function main() {
  let handler;
  try {
    handler = await load(process.env._HANDLER || "");
  } catch (error) {
    await report("init/error", error);
    process.exit(1);
  }
  const answer = handler[STREAMS] ? answerStreamed : answerWhole;
  for (;;) {
    const next = await ask("GET", "invocation/next");
    if (next.status !== 200) throw new Error(`no invocation: ${next.status} ${next.body}`);
    const context = makeContext(next);
    current = context.awsRequestId;
    process.env._X_AMZN_TRACE_ID = next.headers["lambda-runtime-trace-id"] || "";
    try {
      await answer(handler, current, JSON.parse(next.body), context);
    } catch (error) {
      current = null;
      await report(`invocation/${context.awsRequestId}/error`, error);
    }
    whenIdle = null;
  }
}

// Beyond any handler's promise: the process can't be trusted any more.
async function die(error) {
  try {
    if (current !== null) await report(`invocation/${current}/error`, error);
    else console.error(error);
  } finally {
    process.exit(129);
  }
}

process.on("uncaughtException", die);
process.on("unhandledRejection", (reason) => die(named("Runtime.UnhandledPromiseRejection", told(reason).errorMessage, reason)));
process.on("beforeExit", () => {
  if (whenIdle === null) return;
  const then = whenIdle;
  whenIdle = null;
  setImmediate(then);
});

main().catch(die);

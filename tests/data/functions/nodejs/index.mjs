export const echo = async (event) => event;

export function introspect(event, context, callback) {
  callback(null, {
    event,
    id: context.awsRequestId,
    name: context.functionName,
    left: context.getRemainingTimeInMillis(),
    environ: process.env,
  });
}

export const fails = async () => {
  throw new RangeError("no such thing");
};

export const hangs = () => new Promise((done) => setTimeout(done, 60_000));

export const large = async ({ size }) => "x".repeat(size);
